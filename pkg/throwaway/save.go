package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/node/images"
	"github.com/knarr-dev/knarr/pkg/seed"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// dataDir is where a node keeps everything, in its host.
const dataDir = "/var/lib/knarr"

// Save writes the cluster to a file in which others can begin: its objects, as they
// are at one moment, and the images of its nodes. The cluster goes on meanwhile. The
// file is put in the place of one that is there.
func (c *Cluster) Save(ctx context.Context, file string) (err error) {
	if c.Ready.IsZero() {
		return fmt.Errorf("save cluster %s: it is just being started: try again", c.Name)
	}
	// It is said before anything is copied.
	if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
		return fmt.Errorf("save cluster %s to %s: there is no such folder", c.Name, file)
	}
	if done, err := c.doneAgain(ctx, "save", c.Name, file); done {
		return err
	}
	work, err := os.MkdirTemp(c.folder.dir(c.Name), "save-*")
	if err != nil {
		return fmt.Errorf("save cluster %s: %w", c.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	src := seed.Source{Name: c.Name}
	if len(c.Nodes) == 0 {
		src.DataDir = c.folder.controlPlaneDir(c.Name)
		if src.ServerConfig, err = os.ReadFile(c.folder.file(c.Name, "config.yaml")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("save cluster %s: %w", c.Name, err)
		}
	}
	var known []string
	for i, n := range c.Nodes {
		h, err := c.Node(n.Name)
		if err != nil {
			return err
		}
		defer h.Close()
		if i == 0 {
			src.DataDir = filepath.Join(n.Host.Disk, dataDir)
			if src.ServerConfig, err = os.ReadFile(h.Path(serverConfigFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("save cluster %s: read the server's configuration: %w", c.Name, err)
			}
		}
		saved := seed.Node{Name: n.Name, DataDir: filepath.Join(n.Host.Disk, dataDir)}
		archive := filepath.Join(work, n.Name+".tar")
		if saved.Images, err = exportImages(ctx, h, archive, known); err != nil {
			return fmt.Errorf("save cluster %s: node %s: %w", c.Name, n.Name, err)
		}
		if len(saved.Images) > 0 {
			saved.Archive = archive
		}
		known = append(known, saved.Images...)
		src.Nodes = append(src.Nodes, saved)
	}
	return seed.Save(ctx, src, work, file)
}

// exportImages writes an archive of what a node has and the ones before it had not.
func exportImages(ctx context.Context, h *Host, to string, known []string) (names []string, err error) {
	client, err := images.Dial(h.Path("/run/knarr/containerd/containerd.sock"))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	names, err = images.ExportAll(ctx, client, f, known)
	return names, errors.Join(err, f.Close())
}

// begin reads what the file that a cluster begins in says of it.
func (c *Config) begin() (*seed.Seed, error) {
	if c.From == "" {
		return nil, nil
	}
	s, err := seed.Open(c.From)
	if err != nil {
		return nil, err
	}
	// The keeper is elsewhere.
	if c.From, err = filepath.Abs(c.From); err != nil {
		return nil, err
	}
	if len(c.ServerConfig) == 0 {
		c.ServerConfig = s.ServerConfig
	}
	if c.ControlPlaneOnly {
		return s, nil
	}
	if c.Nodes == 0 {
		c.Nodes = len(s.Nodes)
	}
	if c.Nodes < len(s.Nodes) {
		return nil, fmt.Errorf("begin with %s: it has %d nodes, and %d are too few: leave --nodes away, or give as many", c.From, len(s.Nodes), c.Nodes)
	}
	for i, name := range s.Nodes {
		if name != nodeName(i) {
			return nil, fmt.Errorf("begin with %s: it has a node %s, where %s is expected: it is no throwaway cluster's", c.From, name, nodeName(i))
		}
	}
	return s, nil
}

// plant puts what was saved on the disks that the hosts of a cluster will have.
func (f folder) plant(ctx context.Context, s *seed.Seed, rec *Record) (err error) {
	work := f.file(rec.Name, "seed")
	if err := os.Mkdir(work, 0o700); err != nil {
		return fmt.Errorf("make room for %s: %w", rec.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	disks := f.file(rec.Name, rec.Context()) // as the lab calls its folder
	return s.Plant(ctx, work, func(node string) string { return lab.DiskOf(disks, node) }, dataDir)
}
