package throwaway

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/knarr-dev/knarr/pkg/node/images"
	"github.com/knarr-dev/knarr/pkg/throwaway/imagecache"
)

// An Image is where images come from: an archive, or an engine of this machine.
type Image struct {
	text   string
	source imagecache.Source
}

// String is what ParseImage read.
func (i Image) String() string { return i.text }

// ParseImage reads where images come from: a Docker or OCI archive (tar, plain or
// compressed with gzip or zstd), a folder with an OCI layout, "-" for an archive
// from stdin, or the name of an image that this machine's Docker or containerd
// has.
func ParseImage(text string, stdin io.Reader) (Image, error) {
	i := Image{text: text}
	if text == "-" {
		i.source.Read = func(_ context.Context, to io.Writer) (string, error) {
			_, err := io.Copy(to, stdin)
			return "", err
		}
		return i, nil
	}
	path, err := filepath.Abs(text)
	if err != nil {
		return i, err
	}
	st, err := os.Stat(text)
	switch {
	case err == nil && st.IsDir():
		if _, err := os.Stat(filepath.Join(text, "oci-layout")); err != nil {
			return i, fmt.Errorf("image %s: the folder has no oci-layout: give an archive, or a folder with an OCI layout", text)
		}
		i.source.Name = path
		i.source.Read = func(_ context.Context, to io.Writer) (string, error) { return "", tarFolder(path, to) }
		return i, nil
	case err == nil:
		i.source = imagecache.Source{
			Name:    path,
			Version: func(context.Context) string { return versionOf(os.Stat(path)) },
			Read:    func(_ context.Context, to io.Writer) (string, error) { return readFile(path, to) },
		}
		return i, nil
	case strings.ContainsAny(text[:min(1, len(text))], "./~") || strings.Contains(text, ".tar"):
		return i, fmt.Errorf("image archive %s: %w", text, errors.Unwrap(err))
	}
	named, err := reference.ParseDockerRef(text)
	if err != nil {
		return i, fmt.Errorf("image %s: neither a file nor the name of an image: %w", text, err)
	}
	i.source = engines{docker(dockerSocket), otherContainerd(containerdSocket)}.source(named.String())
	return i, nil
}

// tarFolder writes a folder as an archive.
func tarFolder(dir string, to io.Writer) error {
	w := tar.NewWriter(to)
	return errors.Join(w.AddFS(os.DirFS(dir)), w.Close())
}

func readFile(path string, to io.Writer) (version string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	version = versionOf(f.Stat())
	if _, err := io.Copy(to, f); err != nil {
		return "", err
	}
	if versionOf(f.Stat()) != version {
		return "", nil // it was written to meanwhile
	}
	return version, nil
}

// clockTick is more than what file systems of Linux count the time of changes in.
const clockTick = 100 * time.Millisecond

// versionOf changes whenever a file does. It is empty where a change might not show,
// since the last one was only just now.
func versionOf(info fs.FileInfo, err error) string {
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return "" // a pipe has what it has once
	}
	if time.Since(time.Unix(st.Ctim.Unix())) < clockTick {
		return ""
	}
	return fmt.Sprintf("device %d inode %d size %d written %d changed %d", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

// Load brings images into every node. They are not removed while a node lives. A
// damaged archive changes nothing.
func (c *Cluster) Load(ctx context.Context, img Image) error {
	if _, err := c.node(""); err != nil {
		return fmt.Errorf("load image %s: %w", img, err)
	}
	if done, err := c.doneAgain(ctx, "load", "--name", c.Name, "--", img.text); done {
		return err
	}
	cache, err := c.imageCache(ctx)
	if err != nil {
		return fmt.Errorf("load image %s: %w", img, err)
	}
	err = cache.Use(ctx, img.source, func(index ocispec.Index) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, n := range c.Nodes {
			g.Go(func() error { return c.loadInto(ctx, n.Name, cache, index) })
		}
		return g.Wait()
	})
	if err := errors.Join(err, cache.Close()); err != nil {
		return fmt.Errorf("load image %s: %w", img, err)
	}
	return nil
}

// imageCache is the one that all clusters share, or one of its own where that can't
// be written.
func (c *Cluster) imageCache(ctx context.Context) (*imagecache.Cache, error) {
	dir, err := cacheDir()
	if err == nil {
		var cache *imagecache.Cache
		if cache, err = imagecache.Open(ctx, filepath.Join(dir, "images")); err == nil {
			return cache, nil
		}
	}
	slog.Debug("images are not kept for other clusters", "error", err)
	return imagecache.OpenTemp(ctx, c.folder.dir(c.Name))
}

func (c *Cluster) loadInto(ctx context.Context, node string, cache *imagecache.Cache, index ocispec.Index) error {
	h, err := c.Node(node)
	if err != nil {
		return err
	}
	defer h.Close()
	client, err := images.Dial(h.Path("/run/knarr/containerd/containerd.sock"))
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = images.ImportFrom(ctx, client, snapshotter(h), cache, index)
	return err
}

// snapshotter is the one that the node has chosen for its disk.
func snapshotter(h *Host) string {
	unpacked, err := os.ReadDir(h.Path("/var/lib/knarr/agent/containerd/io.containerd.snapshotter.v1.native/snapshots"))
	if err == nil && len(unpacked) > 0 {
		return "native"
	}
	return "overlayfs"
}
