package seed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/archive"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// Plant lays the files of a new cluster out, which must not have started yet: each
// node's data dir is a folder of its disk. Work is an empty folder on the same file
// system, which the caller removes. All of the file is checked before anything but
// work is touched.
//
// The server gets new authorities, and each agent the key by which it will join, so
// that the nodes are those that the saved cluster knew by their names.
func (s *Seed) Plant(ctx context.Context, work string, disk func(node string) string, dataDir string) error {
	if len(s.Nodes) == 0 {
		return s.told(errors.New("it is a control plane alone, without nodes: begin with it by --control-plane-only"))
	}
	if s.Architecture != runtime.GOARCH && len(s.Images) > 0 {
		return s.told(fmt.Errorf("its images are for %s, and this machine is %s", s.Architecture, runtime.GOARCH))
	}
	if err := s.unpack(ctx, work); err != nil {
		return s.told(err)
	}
	if err := s.plant(ctx, work, disk, dataDir); err != nil {
		return s.told(err)
	}
	return nil
}

// PlantControlPlane is Plant for a control plane that has no nodes. Those of the
// saved cluster, and the pods on them, are left out; what controllers want of pods
// they make anew.
func (s *Seed) PlantControlPlane(ctx context.Context, work, dataDir string) error {
	err := s.unpack(ctx, work)
	if err == nil {
		err = s.adopt(ctx, work, dataDir, nil)
	}
	return s.told(err)
}

// unpack checks all there is.
func (s *Seed) unpack(ctx context.Context, into string) error {
	r, file, err := s.open()
	if err != nil {
		return err
	}
	defer file.Close()
	defer r.Close()
	// A signal need not wait for the end of a large file.
	stop := context.AfterFunc(ctx, func() { file.Close() })
	err = r.Unpack(into, s.Files)
	if stop(); ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	i, err := datastore.Inspect(ctx, filepath.Join(into, storePath))
	if err != nil {
		return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	}
	defer i.Close()
	faults, err := i.Check(ctx)
	if err == nil && len(faults) > 0 {
		err = errors.New(faults[0])
	}
	if err != nil {
		return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	}
	return nil
}

func (s *Seed) plant(ctx context.Context, work string, disk func(string) string, dataDir string) error {
	keys := map[string][]byte{}
	for i, node := range s.Nodes {
		data := filepath.Join(disk(node), dataDir)
		if err := os.MkdirAll(filepath.Dir(data), 0o755); err != nil {
			return err
		}
		if err := move(filepath.Join(work, nodesDir, node), data); err != nil {
			return err
		}
		if err := s.showImages(work, filepath.Join(data, "agent", "images")); err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		var err error
		if keys[node], err = join.Prepare(filepath.Join(data, "agent", "identity")); err != nil {
			return err
		}
	}
	for _, v := range s.Volumes {
		if !slices.Contains(s.Nodes, v.Node) {
			continue
		}
		if err := makeVolume(disk(v.Node), v.Path); err != nil {
			return err
		}
	}
	return s.adopt(ctx, work, filepath.Join(disk(s.Nodes[0]), dataDir), keys)
}

// adopt puts the store into a data dir, and makes it that of a new authority. Keys
// are those of the agents; nil is for a control plane without nodes.
func (s *Seed) adopt(ctx context.Context, work, dataDir string, keys map[string][]byte) error {
	server := filepath.Join(dataDir, "server")
	store := filepath.Join(server, "db", "state.db")
	if err := os.MkdirAll(filepath.Dir(store), 0o700); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(work, storePath), store); err != nil {
		return err
	}
	// The server corrects the leaves: it knows its addresses.
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(server, "tls"), NodeName: "server", ServiceIP: netip.AddrFrom4([4]byte{10, 43, 0, 1})})
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(p.ServerCA.CertPath)
	if err != nil {
		return err
	}
	return adopt(ctx, store, ca, keys)
}

// move renames the files of a folder into one that may be there.
func move(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		return os.Rename(path, target)
	})
}

// showImages links the archives into the folder that a node imports images from:
// each node gets what any of them had.
func (s *Seed) showImages(work, into string) error {
	archives, err := filepath.Glob(filepath.Join(work, imagesDir, "*.tar"))
	if err != nil || len(archives) == 0 {
		return err
	}
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	for _, a := range archives {
		if err := os.Link(a, filepath.Join(into, "saved-"+filepath.Base(a))); err != nil {
			return err
		}
	}
	return nil
}

// makeVolume makes the empty folder of a volume, as it was made at first. Of what a
// node shares with its machine it makes nothing.
func makeVolume(disk, path string) error {
	rel, ok := strings.CutPrefix(filepath.Clean(path), "/var/")
	if !ok {
		return nil
	}
	dir := filepath.Join(disk, "var", rel)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o777) // the umask has taken some bits
}
