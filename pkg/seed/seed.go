// Package seed keeps prepared clusters in files, and has new ones begin there: with
// the same objects, the same images and the same identity, but with authorities,
// keys and addresses of their own.
//
// What is in a store that only holds for the machines it came from is taken out
// when it is saved: states of pods, addresses of nodes, leases, tokens, requests for
// certificates, events. What follows from a new cluster's authority is written when
// it begins. No authority, no key of one and no token for nodes is ever in the file;
// the cluster's own Secrets are, and as plain text.
package seed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	utilversion "k8s.io/apimachinery/pkg/util/version"

	"github.com/knarr-dev/knarr/pkg/archive"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/encryption"
	"github.com/knarr-dev/knarr/pkg/version"
)

const (
	// family begins the first field of every manifest, format is ours.
	family = "knarr-cluster/"
	format = family + "1"

	storePath = "store/state.db"
	nodesDir  = "nodes"
	imagesDir = "images"
)

// kept are the folders of a node's data dir that are saved with it: what is applied
// from files, pods of files, and the range of pod addresses that the Node has.
var kept = []string{"server/manifests", "agent/pod-manifests", "agent/network/subnet"}

// Manifest tells of a saved cluster.
type Manifest struct {
	Format string `json:"format"`
	// Created is when it was saved.
	Created time.Time `json:"created"`
	// Name is what the cluster was called, and Cluster its identity, the UID of
	// kube-system.
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	// Knarr and Kubernetes are the versions that it ran.
	Knarr      string `json:"knarr"`
	Kubernetes string `json:"kubernetes"`
	// Architecture is that of its images.
	Architecture string `json:"architecture"`
	// Nodes are its nodes, the server first. A control plane alone has none.
	Nodes []string `json:"nodes"`
	// Images are in the file.
	Images []string `json:"images,omitempty"`
	// Volumes are folders of nodes. Their contents are not kept.
	Volumes []Volume `json:"volumes,omitempty"`
	// ServerConfig is the content of the server's configuration file.
	ServerConfig []byte         `json:"serverConfig,omitempty"`
	Files        []archive.File `json:"files"`
}

// Volume is a folder of a node that a PersistentVolume is.
type Volume struct {
	Node string `json:"node"`
	Path string `json:"path"`
}

// Source is a cluster that is to be saved. It may run.
type Source struct {
	Name string
	// DataDir is the server's.
	DataDir      string
	Nodes        []Node
	ServerConfig []byte
}

// Node is one of a Source.
type Node struct {
	Name    string
	DataDir string
	// Archive has images in it that Images names. Empty if there are none.
	Archive string
	Images  []string
}

// Save writes a cluster to a file, in place of one that is there, which only its
// owner may read. Copies are made in the folder work, which the caller removes.
func Save(ctx context.Context, src Source, work, to string) error {
	if err := save(ctx, src, work, to); err != nil {
		return fmt.Errorf("save cluster %s: %w", src.Name, err)
	}
	return nil
}

func save(ctx context.Context, src Source, work, to string) error {
	v := version.Get()
	m := Manifest{
		Format: format, Created: time.Now().UTC().Truncate(time.Second), Name: src.Name,
		Knarr: v.Knarr, Kubernetes: v.Kubernetes, Architecture: runtime.GOARCH, ServerConfig: src.ServerConfig,
	}
	server := filepath.Join(src.DataDir, "server")
	// The keys come before the store: one may be forgotten meanwhile.
	secrets := encryption.NewOpener(ctx, encryption.Path(server))
	copied, final := filepath.Join(work, "copy.db"), filepath.Join(work, "state.db")
	if err := datastore.Copy(ctx, filepath.Join(server, "db", "state.db"), copied); err != nil {
		return err
	}
	about, err := strip(ctx, copied, secrets)
	if err != nil {
		return err
	}
	m.Cluster, m.Volumes = about.cluster, about.volumes
	// Without its log, and without what was taken out.
	if err := datastore.Copy(ctx, copied, final); err != nil {
		return err
	}
	files := []archive.Source{{File: archive.File{Path: storePath}, From: final}}
	for _, n := range src.Nodes {
		m.Nodes = append(m.Nodes, n.Name)
		m.Images = append(m.Images, n.Images...)
		more, err := filesOf(n)
		if err != nil {
			return err
		}
		files = append(files, more...)
	}
	for i := range files {
		if err := files[i].Measure(); err != nil {
			return err
		}
		m.Files = append(m.Files, files[i].File)
	}
	return write(m, files, to)
}

// filesOf lists what is kept of a node.
func filesOf(n Node) ([]archive.Source, error) {
	var found []archive.Source
	if n.Archive != "" {
		found = append(found, archive.Source{File: archive.File{Path: imagesDir + "/" + n.Name + ".tar"}, From: n.Archive})
	}
	for _, part := range kept {
		err := filepath.WalkDir(filepath.Join(n.DataDir, part), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(n.DataDir, path)
			if err != nil {
				return err
			}
			found = append(found, archive.Source{File: archive.File{Path: nodesDir + "/" + n.Name + "/" + filepath.ToSlash(rel)}, From: path})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func write(m Manifest, files []archive.Source, to string) error {
	f, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+"-*.new") // for its owner alone
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which after the rename is not there
	err = archive.Write(f, m, m.Created, files)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}

// Seed is a saved cluster in its file, of which the manifest was read.
type Seed struct {
	Manifest
	path string
}

// Open reads whose cluster a file keeps, and tells of one that this version can't
// begin with. That the rest is whole is seen by [Seed.Plant].
func Open(path string) (*Seed, error) {
	s := &Seed{path: path}
	r, file, err := s.open()
	if err != nil {
		return nil, s.told(err)
	}
	r.Close()
	return s, s.told(file.Close())
}

// open reads the manifest. The caller closes both.
func (s *Seed) open() (*archive.Reader, *os.File, error) {
	file, err := os.Open(s.path)
	if err != nil {
		return nil, nil, cmp.Or(errors.Unwrap(err), err) // the path is told already
	}
	r, err := archive.Open(file)
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	if err := s.read(r.Manifest); err != nil {
		r.Close()
		file.Close()
		return nil, nil, err
	}
	return r, file, nil
}

func (s *Seed) read(text []byte) error {
	s.Manifest = Manifest{}
	if err := json.Unmarshal(text, &s.Manifest); err != nil || !strings.HasPrefix(s.Format, family) {
		return archive.ErrForeign
	}
	if s.Format != format {
		return fmt.Errorf("it is of the form %s, and this version knows %s: use the version that made it, or a newer one", s.Format, format)
	}
	for _, node := range s.Nodes {
		if len(validation.IsDNS1123Subdomain(node)) > 0 {
			return fmt.Errorf("%w: its manifest names the node %q", archive.ErrDamaged, node)
		}
	}
	theirs, err := utilversion.ParseSemantic(s.Kubernetes)
	if err != nil {
		return fmt.Errorf("%w: its manifest names the version %q", archive.ErrDamaged, s.Kubernetes)
	}
	ours := utilversion.MustParseSemantic(version.Kubernetes)
	if theirs.Major() > ours.Major() || theirs.Minor() > ours.Minor() {
		return fmt.Errorf("it is of Kubernetes %s, and this is %s, which may not be able to read its objects: use the version that made it, or a newer one", s.Kubernetes, version.Kubernetes)
	}
	return nil
}

// told says what is wrong with the file in one line.
func (s *Seed) told(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, archive.ErrForeign):
		err = errors.New("it is not a cluster that \"knarr save\" has written")
	case errors.Is(err, archive.ErrDamaged):
		err = fmt.Errorf("%w: save the cluster anew", err)
	}
	return fmt.Errorf("begin with %s: %w", s.path, err)
}
