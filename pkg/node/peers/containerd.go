package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Containerd is the store of the containerd in this process.
type Containerd struct {
	// Dial connects to it. It is called for the first request.
	Dial func() (*containerd.Client, error)
	// Root is its folder, whose files are read as they are: they are named by their
	// digests, and never change.
	Root string

	mu     sync.Mutex
	client *containerd.Client
}

var _ Store = (*Containerd)(nil)

func (c *Containerd) connected() (*containerd.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		client, err := c.Dial()
		if err != nil {
			return nil, err
		}
		c.client = client
	}
	return c.client, nil
}

// Tag implements Store.
func (c *Containerd) Tag(ctx context.Context, name string) (ocispec.Descriptor, error) {
	client, err := c.connected()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	img, err := client.ImageService().Get(ctx, name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return img.Target, nil
}

// Part implements Store. It looks through the images of the repository, so that
// nothing is given away that is here by another name only.
func (c *Containerd) Part(ctx context.Context, repository string, want digest.Digest) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	client, err := c.connected()
	if err != nil {
		return none, err
	}
	list, err := client.ImageService().List(ctx, "name~="+strconv.Quote("^"+regexp.QuoteMeta(repository)+"[:@]"))
	if err != nil {
		return none, fmt.Errorf("list images of %s: %w", repository, err)
	}
	store := client.ContentStore()
	seen := map[digest.Digest]bool{}
	for _, img := range list {
		next := []ocispec.Descriptor{img.Target}
		for len(next) > 0 {
			d := next[0]
			next = next[1:]
			if d.Digest == want {
				return d, nil
			}
			if seen[d.Digest] || !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
				continue
			}
			seen[d.Digest] = true
			children, err := images.Children(ctx, store, d)
			if errdefs.IsNotFound(err) {
				continue // the part for another kind of machine
			}
			if err != nil {
				return none, fmt.Errorf("read %s of %s: %w", d.Digest, img.Name, err)
			}
			next = append(next, children...)
		}
	}
	return none, fmt.Errorf("%s of %s: %w", want, repository, errdefs.ErrNotFound)
}

// Open implements Store.
func (c *Containerd) Open(ctx context.Context, d ocispec.Descriptor) (io.ReadSeekCloser, error) {
	client, err := c.connected()
	if err != nil {
		return nil, err
	}
	if _, err := client.ContentStore().Info(ctx, d.Digest); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(c.Root, "io.containerd.content.v1.content", "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return f, nil
}
