package backup

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/durable"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/version"
)

// leftOutRevisions is how far the count of a restored store is ahead of its
// backup's: more than the lost store can have gone on since.
const leftOutRevisions = 1_000_000_000

// open finds a backup: a file, where the name has a slash or is one here, or else one of
// the storage.
func (c Config) open(ctx context.Context, name string) (io.ReadCloser, error) {
	info, err := os.Stat(name)
	if strings.Contains(name, string(filepath.Separator)) || err == nil && info.Mode().IsRegular() {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read backup: %w", err)
		}
		return f, nil
	}
	return c.Storage.Open(ctx, name)
}

// Verify reads a whole backup, which is unpacked for that, and checks it: each
// file's hash, the structure of the store, and that authorities and keys belong
// together.
func Verify(ctx context.Context, c Config, name string) (Manifest, error) {
	work, err := newWork(c.DataDir)
	if err != nil {
		return Manifest{}, err
	}
	defer work.close()
	return c.stage(ctx, name, filepath.Join(work.dir, "server"))
}

// stage unpacks a backup into a folder that it makes, and checks it.
func (c Config) stage(ctx context.Context, name, into string) (Manifest, error) {
	m, err := c.unpack(ctx, name, into)
	if err == nil {
		err = check(ctx, m, into)
	}
	if err != nil {
		return m, fmt.Errorf("backup %s: %w", name, err)
	}
	return m, nil
}

func (c Config) unpack(ctx context.Context, name, into string) (Manifest, error) {
	file, err := c.open(ctx, name)
	if err != nil {
		return Manifest{}, err
	}
	defer file.Close()
	opened, err := c.Keys.open(file)
	if err != nil {
		return Manifest{}, err
	}
	a, err := openArchive(opened)
	if err != nil {
		return Manifest{}, err
	}
	defer a.Close()
	if err := os.Mkdir(into, 0o700); err != nil {
		return a.manifest, err
	}
	return a.manifest, a.unpack(into)
}

// authorities sign the cluster's certificates.
var authorities = []string{"server-ca", "client-ca", "request-header-ca"}

func check(ctx context.Context, m Manifest, dir string) error {
	if err := checkStore(ctx, m, filepath.Join(dir, filepath.FromSlash(storePath))); err != nil {
		return damaged(err)
	}
	for _, name := range authorities {
		cert, key := filepath.Join(dir, "tls", name+".crt"), filepath.Join(dir, "tls", name+".key")
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return damaged(fmt.Errorf("its authority %s: %w", name, err))
		}
	}
	cluster, err := clusterOf(dir)
	if err == nil && cluster != m.Cluster {
		err = errors.New("its authority is not the one that its manifest names")
	}
	if err != nil {
		return damaged(err)
	}
	return nil
}

// checkStore reads all of it.
func checkStore(ctx context.Context, m Manifest, path string) error {
	i, err := datastore.Inspect(ctx, path)
	if err != nil {
		return err
	}
	defer i.Close()
	faults, err := i.Check(ctx)
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return errors.New(faults[0])
	}
	revision, err := i.Glance(ctx)
	if err != nil {
		return err
	}
	if i.Driver != m.Driver || revision != m.Revision {
		return fmt.Errorf("its store has revision %d of %s, its manifest says %d of %s", revision, i.Driver, m.Revision, m.Driver)
	}
	return nil
}

// Restored tells what Restore did.
type Restored struct {
	Manifest
	// Aside is where the folder was moved to that the backup took the place of, if
	// there was one.
	Aside string
}

// Restore puts a backup in the place of a server's state, which must not run. All
// is checked first; then one rename makes it so. A data dir that has a cluster is
// left alone, unless force says to move its state aside.
func Restore(ctx context.Context, c Config, name string, force bool) (Restored, error) {
	return restore(ctx, c, name, nil, force)
}

// RestoreReplica is Restore of what a Replica copied to the storage: its latest
// backup, and the changes after it.
func RestoreReplica(ctx context.Context, c Config, force bool) (Restored, error) {
	base, changes, err := latestReplica(ctx, c)
	if err != nil {
		return Restored{}, err
	}
	return restore(ctx, c, base, changes, force)
}

func restore(ctx context.Context, c Config, name string, changes []string, force bool) (Restored, error) {
	lock, err := host.TakeLock(c.DataDir)
	if err != nil {
		return Restored{}, err
	}
	defer lock.Close()
	used, err := inUse(c.serverDir())
	if err != nil {
		return Restored{}, fmt.Errorf("restore backup: %w", err)
	}
	if used && !force {
		return Restored{}, fmt.Errorf("restore backup: %s has a cluster: give --force to move it aside, or another --data-dir", c.serverDir())
	}
	work, err := newWork(c.DataDir)
	if err != nil {
		return Restored{}, err
	}
	defer work.close()
	staged := filepath.Join(work.dir, "server")
	m, err := c.stage(ctx, name, staged)
	if err != nil {
		return Restored{}, err
	}
	r := Restored{Manifest: m}
	if err := host.CheckStoreVersion(staged, version.Kubernetes); err != nil {
		return r, fmt.Errorf("backup %s is of a newer Kubernetes (%s, made by Knarr %s) than this one (%s): use that version or a newer one", name, m.Kubernetes, m.Knarr, version.Kubernetes)
	}
	if len(changes) > 0 {
		if r.Revision, err = c.replay(ctx, staged, m.Revision, changes); err == nil {
			err = check(ctx, r.Manifest, staged)
		}
		if err != nil {
			return Restored{}, err
		}
	}
	if err := datastore.Renew(ctx, filepath.Join(staged, filepath.FromSlash(storePath)), leftOutRevisions); err != nil {
		return r, err
	}
	if used {
		r.Aside = c.serverDir() + ".before-" + c.now().UTC().Format("20060102T150405Z")
		if err := os.Rename(c.serverDir(), r.Aside); err != nil {
			return Restored{}, fmt.Errorf("move the state of before aside: %w", err)
		}
	}
	// Of a folder that is not in use, nothing but empty folders can be there.
	if err := os.RemoveAll(c.serverDir()); err != nil {
		return r, fmt.Errorf("restore backup: %w", err)
	}
	if err := syncTree(staged); err != nil {
		return r, err
	}
	if err := os.Rename(staged, c.serverDir()); err != nil {
		return r, fmt.Errorf("restore backup: %w", err)
	}
	return r, durable.SyncDir(c.DataDir)
}

// inUse tells whether there are files in a server's folder.
func inUse(dir string) (bool, error) {
	found := false
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return found, err
}

// syncTree has the names in a folder on the disk; the files are there.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(path)
	})
}
