package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Where Distribution keeps what, below the registry's folder; see
// registry/storage/paths.go of its module.
const (
	manifestsFolder = "_manifests"
	layersFolder    = "_layers"
	blobsFolder     = "docker/registry/v2/blobs"
)

// contents are what a registry's folder has, as of one look.
type contents struct {
	repositories map[string]*repository
	blobs        map[digest.Digest]file
}

type file struct {
	size    int64 // bytes
	changed time.Time
}

type repository struct {
	manifests map[digest.Digest]*manifest
	tags      map[string]digest.Digest
	layers    []digest.Digest
}

// manifest is an image, or an index of some.
type manifest struct {
	linked time.Time
	// parts are what it is made of; images those of an index.
	parts, images []digest.Digest
	// subject is the image that it says something about.
	subject digest.Digest
	// size is what its parts take, in bytes, without an index' images.
	size int64
}

// look reads a registry's folder. What it can't make sense of is an error, since
// something that nobody refers to any more can only be known by reading all.
func look(ctx context.Context, f *files) (*contents, error) {
	c := &contents{repositories: map[string]*repository{}, blobs: map[digest.Digest]file{}}
	root := f.root.FS()
	err := fs.WalkDir(root, blobsFolder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		d, ok := blobAt(name)
		if !ok {
			return nil
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		c.blobs[d] = file{size: st.Size(), changed: st.ModTime()}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the registry's blobs: %w", err)
	}
	err = fs.WalkDir(root, local(repositories), func(name string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "_") {
			return nil
		}
		repo := strings.TrimPrefix(path.Dir(name), local(repositories)+"/")
		if c.repositories[repo] == nil {
			c.repositories[repo] = &repository{manifests: map[digest.Digest]*manifest{}, tags: map[string]digest.Digest{}}
		}
		switch e.Name() {
		case manifestsFolder:
			err = c.lookAt(f, name, c.repositories[repo])
		case layersFolder:
			c.repositories[repo].layers, err = digestsIn(root, name)
		}
		if err != nil {
			return fmt.Errorf("repository %s: %w", repo, err)
		}
		return fs.SkipDir
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the registry's repositories: %w", err)
	}
	return c, nil
}

// blobAt reads a path of the form …/blobs/sha256/ab/abcd…/data.
func blobAt(name string) (digest.Digest, bool) {
	words := strings.Split(strings.TrimPrefix(name, blobsFolder+"/"), "/")
	if len(words) != 4 || words[3] != "data" {
		return "", false
	}
	d := digest.Digest(words[0] + ":" + words[2])
	return d, d.Validate() == nil
}

func blobPath(d digest.Digest) string {
	return path.Join(blobsFolder, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// lookAt reads a repository's manifests and tags.
func (c *contents) lookAt(f *files, folder string, r *repository) error {
	root := f.root.FS()
	linked, err := digestsIn(root, path.Join(folder, "revisions"))
	if err != nil {
		return err
	}
	for _, d := range linked {
		st, err := fs.Stat(root, path.Join(folder, "revisions", d.Algorithm().String(), d.Encoded(), "link"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted
		}
		if err != nil {
			return err
		}
		if _, ok := c.blobs[d]; !ok {
			continue // and nobody can have it any more
		}
		text, err := fs.ReadFile(root, path.Join(blobPath(d), "data"))
		if err != nil {
			return err
		}
		m, err := read(text)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d, err)
		}
		m.linked = st.ModTime()
		r.manifests[d] = m
	}
	tags, err := fs.ReadDir(root, path.Join(folder, "tags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, t := range tags {
		text, err := fs.ReadFile(root, path.Join(folder, "tags", t.Name(), "current", "link"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.tags[t.Name()] = digest.Digest(strings.TrimSpace(string(text)))
	}
	return nil
}

// digestsIn reads a folder of the form sha256/abcd…
func digestsIn(root fs.FS, folder string) ([]digest.Digest, error) {
	var found []digest.Digest
	algorithms, err := fs.ReadDir(root, folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, a := range algorithms {
		entries, err := fs.ReadDir(root, path.Join(folder, a.Name()))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if d := digest.Digest(a.Name() + ":" + e.Name()); d.Validate() == nil {
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// read takes from a manifest, of OCI's or Docker's kinds, what it refers to.
func read(text []byte) (*manifest, error) {
	type part struct {
		Digest digest.Digest `json:"digest"`
		Size   int64         `json:"size"`
	}
	var said struct {
		Config    *part  `json:"config"`
		Layers    []part `json:"layers"`
		Blobs     []part `json:"blobs"`
		Manifests []part `json:"manifests"`
		Subject   *part  `json:"subject"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, err
	}
	m := &manifest{size: int64(len(text))}
	parts := slices.Concat(said.Layers, said.Blobs)
	if said.Config != nil {
		parts = append(parts, *said.Config)
	}
	for _, p := range parts {
		m.parts = append(m.parts, p.Digest)
		m.size += p.Size
	}
	for _, p := range said.Manifests {
		m.images = append(m.images, p.Digest)
	}
	if said.Subject != nil {
		m.subject = said.Subject.Digest
	}
	return m, nil
}

// wanted are the manifests of a repository that a tag leads to: by an index, too,
// and those that say something about one of them.
func (r *repository) wanted() map[digest.Digest]bool {
	keep := map[digest.Digest]bool{}
	var add func(digest.Digest)
	add = func(d digest.Digest) {
		m := r.manifests[d]
		if m == nil || keep[d] {
			return
		}
		keep[d] = true
		for _, i := range m.images {
			add(i)
		}
		for other, o := range r.manifests {
			if o.subject == d {
				add(other)
			}
		}
	}
	for _, d := range r.tags {
		add(d)
	}
	return keep
}
