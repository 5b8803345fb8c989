package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// recent is how long something is kept though nobody refers to it: a push sends
// layers first, or learns that they are there already, and then the image.
const recent = time.Hour

const (
	// ContentsPath is where the status socket tells what the registry has, as
	// [Contents].
	ContentsPath = "/v1/registry"
	// PrunePath is where it takes the order, by POST, to remove what nobody needs,
	// and tells what went, as [Pruned]. The query untagged=true has images removed
	// that no tag leads to, and dry-run=true removes nothing.
	PrunePath = "/v1/registry/prune"
)

// Contents are what a registry has.
type Contents struct {
	Images []Image `json:"images"`
	// Size is what all of it takes on disk, in bytes.
	Size int64 `json:"size"`
	// Unreferenced is the part of that which no image is made of.
	Unreferenced int64 `json:"unreferenced"`
}

// Image is one of a repository. Layers that several share count for each.
type Image struct {
	Repository string   `json:"repository"`
	Tags       []string `json:"tags,omitempty"`
	Digest     string   `json:"digest"`
	Size       int64    `json:"size"`
}

// Pruned is what was removed.
type Pruned struct {
	Images []Image `json:"images"`
	Blobs  int     `json:"blobs"`
	// Size is what the blobs took, in bytes.
	Size int64 `json:"size"`
}

// ServeContents and ServePrune answer on the status socket.
func (r *Registry) ServeContents(w http.ResponseWriter, req *http.Request) {
	r.answer(w, req, func(s *store) (any, error) { return s.contents(req.Context()) })
}

// ServePrune removes what nobody needs; see [PrunePath].
func (r *Registry) ServePrune(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	r.answer(w, req, func(s *store) (any, error) {
		return s.prune(req.Context(), q.Get("untagged") == "true", q.Get("dry-run") == "true", time.Now().Add(-recent))
	})
}

func (r *Registry) answer(w http.ResponseWriter, _ *http.Request, ask func(*store) (any, error)) {
	s := r.store.Load()
	if s == nil {
		http.Error(w, "this server keeps no registry (--registry), or it has not started yet", http.StatusServiceUnavailable)
		return
	}
	said, err := ask(s)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said) // it fails only when the client has gone
}

func (s *store) contents(ctx context.Context) (*Contents, error) {
	s.mu.Lock()
	c, err := look(ctx, s.files)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	all := &Contents{Images: []Image{}}
	for name, r := range c.repositories {
		for d := range r.manifests {
			all.Images = append(all.Images, r.image(name, d))
		}
	}
	sortImages(all.Images)
	used := c.used()
	for d, b := range c.blobs {
		all.Size += b.size
		if !used[d] {
			all.Unreferenced += b.size
		}
	}
	return all, nil
}

// image describes one, with its index' images if it is one.
func (r *repository) image(name string, d digest.Digest) Image {
	m := r.manifests[d]
	i := Image{Repository: name, Digest: d.String(), Size: m.size}
	for _, part := range m.images {
		if p := r.manifests[part]; p != nil {
			i.Size += p.size
		}
	}
	for tag, to := range r.tags {
		if to == d {
			i.Tags = append(i.Tags, tag)
		}
	}
	slices.Sort(i.Tags)
	return i
}

func sortImages(list []Image) {
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), slices.Compare(a.Tags, b.Tags), cmp.Compare(a.Digest, b.Digest))
	})
}

// used are the blobs that an image of any repository is made of.
func (c *contents) used() map[digest.Digest]bool {
	used := map[digest.Digest]bool{}
	for _, r := range c.repositories {
		for d, m := range r.manifests {
			used[d] = true
			for _, p := range slices.Concat(m.parts, m.images) {
				used[p] = true
			}
		}
	}
	return used
}

// prune removes the blobs that nobody refers to and, with untagged, the images
// that no tag leads to. What was pushed or asked for after since stays. Nobody
// writes meanwhile.
func (s *store) prune(ctx context.Context, untagged, dry bool, since time.Time) (*Pruned, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := look(ctx, s.files)
	if err != nil {
		return nil, fmt.Errorf("%w; nothing was removed", err)
	}
	gone := &Pruned{Images: []Image{}}
	for name, r := range c.repositories {
		if !untagged {
			break
		}
		keep := r.wanted()
		for d, m := range r.manifests {
			if keep[d] || m.linked.After(since) {
				continue
			}
			gone.Images = append(gone.Images, r.image(name, d))
			delete(r.manifests, d)
			if dry {
				continue
			}
			if err := s.files.removeManifest(name, d, r.tags); err != nil {
				return gone, fmt.Errorf("remove image %s of %s: %w", d, name, err)
			}
		}
	}
	sortImages(gone.Images)
	used := c.used()
	for d, b := range c.blobs {
		if used[d] || b.changed.After(since) {
			continue
		}
		gone.Blobs++
		gone.Size += b.size
		delete(c.blobs, d)
		if dry {
			continue
		}
		if err := s.files.root.RemoveAll(blobPath(d)); err != nil {
			return gone, fmt.Errorf("remove blob %s: %w", d, err)
		}
	}
	if dry {
		return gone, nil
	}
	// A repository says that it has a layer by a link, which leads nowhere now.
	for name, r := range c.repositories {
		for _, d := range r.layers {
			if _, there := c.blobs[d]; there {
				continue
			}
			if err := s.files.root.RemoveAll(path.Join(local(repositories), name, layersFolder, d.Algorithm().String(), d.Encoded())); err != nil {
				return gone, fmt.Errorf("remove the link to blob %s: %w", d, err)
			}
		}
	}
	return gone, nil
}

// removeManifest removes one from a repository; its blob stays.
func (f *files) removeManifest(name string, d digest.Digest, tags map[string]digest.Digest) error {
	folder := path.Join(local(repositories), name, manifestsFolder)
	for tag := range tags { // each remembers what it meant before
		if err := f.root.RemoveAll(path.Join(folder, "tags", tag, "index", d.Algorithm().String(), d.Encoded())); err != nil {
			return err
		}
	}
	return f.root.RemoveAll(path.Join(folder, "revisions", d.Algorithm().String(), d.Encoded()))
}
