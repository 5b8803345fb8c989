package throwaway

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/distribution/reference"
	"golang.org/x/sync/errgroup"

	"github.com/knarr-dev/knarr/pkg/node/images"
)

// Where the machine's own container engines listen.
const (
	dockerSocket     = "/var/run/docker.sock"
	containerdSocket = "/run/containerd/containerd.sock"
)

// An Image is where images come from: an archive, or an engine of this machine.
type Image struct {
	text string
	file string // an archive; else copy writes one
	copy func(ctx context.Context, to io.Writer) error
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
		i.copy = func(_ context.Context, to io.Writer) error {
			_, err := io.Copy(to, stdin)
			return err
		}
		return i, nil
	}
	st, err := os.Stat(text)
	switch {
	case err == nil && st.IsDir():
		if _, err := os.Stat(filepath.Join(text, "oci-layout")); err != nil {
			return i, fmt.Errorf("image %s: the folder has no oci-layout: give an archive, or a folder with an OCI layout", text)
		}
		i.copy = func(_ context.Context, to io.Writer) error { return tarFolder(text, to) }
		return i, nil
	case err == nil:
		i.file, err = filepath.Abs(text)
		return i, err
	case strings.ContainsAny(text[:min(1, len(text))], "./~") || strings.Contains(text, ".tar"):
		return i, fmt.Errorf("image archive %s: %w", text, errors.Unwrap(err))
	}
	named, err := reference.ParseDockerRef(text)
	if err != nil {
		return i, fmt.Errorf("image %s: neither a file nor the name of an image: %w", text, err)
	}
	i.copy = func(ctx context.Context, to io.Writer) error { return export(ctx, named.String(), to) }
	return i, nil
}

// tarFolder writes a folder as an archive.
func tarFolder(dir string, to io.Writer) error {
	w := tar.NewWriter(to)
	return errors.Join(w.AddFS(os.DirFS(dir)), w.Close())
}

// export writes an image of the machine's own engine as an archive.
func export(ctx context.Context, name string, to io.Writer) error {
	derr := exportDocker(ctx, dockerSocket, name, to)
	if derr == nil {
		return nil
	}
	cerr := exportContainerd(ctx, containerdSocket, name, to)
	if cerr == nil {
		return nil
	}
	if errors.Is(derr, fs.ErrNotExist) && errors.Is(cerr, fs.ErrNotExist) {
		return fmt.Errorf("no Docker and no containerd of this machine listens at %s or %s: give an archive", dockerSocket, containerdSocket)
	}
	for _, err := range []error{derr, cerr} {
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return derr
}

func exportDocker(ctx context.Context, socket, name string, to io.Writer) error {
	if _, err := os.Stat(socket); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/images/"+url.PathEscape(name)+"/get", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask Docker: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("image %s from Docker: %s", name, answer.Status)
	}
	if _, err := io.Copy(to, answer.Body); err != nil {
		return fmt.Errorf("read from Docker: %w", err)
	}
	return nil
}

func exportContainerd(ctx context.Context, socket, name string, to io.Writer) error {
	if _, err := os.Stat(socket); err != nil {
		return err
	}
	client, err := containerd.New(socket)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	for _, namespace := range []string{"default", "k8s.io", "moby"} {
		ctx := namespaces.WithNamespace(ctx, namespace)
		if _, err := client.ImageService().Get(ctx, name); err != nil {
			continue
		}
		if err := client.Export(ctx, to, archive.WithImage(client.ImageService(), name)); err != nil {
			return fmt.Errorf("export from containerd: %w", err)
		}
		return nil
	}
	return fmt.Errorf("containerd has no image %s", name)
}

// Load brings images into every node. They are not removed while a node lives. A
// damaged archive changes nothing.
func (c *Cluster) Load(ctx context.Context, img Image) (err error) {
	if _, err := c.node(""); err != nil {
		return fmt.Errorf("load image %s: %w", img, err)
	}
	file := img.file
	if file == "" {
		// Each node reads it, and not before all of it is there.
		spool, err := os.CreateTemp(c.folder.dir(c.Name), "load-*")
		if err != nil {
			return fmt.Errorf("load image %s: %w", img, err)
		}
		defer os.Remove(spool.Name())
		if err := errors.Join(img.copy(ctx, spool), spool.Close()); err != nil {
			return fmt.Errorf("load image %s: %w", img, err)
		}
		file = spool.Name()
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		g.Go(func() error { return c.loadInto(ctx, n.Name, file) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("load image archive %s: %w", img, err)
	}
	return nil
}

func (c *Cluster) loadInto(ctx context.Context, node, file string) error {
	h, err := c.Node(node)
	if err != nil {
		return err
	}
	defer h.Close()
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	client, err := images.Dial(h.Path("/run/knarr/containerd/containerd.sock"))
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := images.Import(ctx, client, snapshotter(h), in, nil)
	if err == nil && len(list) == 0 {
		err = errors.New("it has no image with a name for this machine")
	}
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
