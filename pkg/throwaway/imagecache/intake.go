package imagecache

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// whole says whether a blob is there. One that isn't what its digest says is removed:
// a disk or a person has changed it.
func (c *Cache) whole(ctx context.Context, d digest.Digest) bool {
	blob, err := c.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return false
	}
	defer blob.Close()
	is := d.Verifier()
	if _, err = io.Copy(is, content.NewReader(blob)); err == nil && is.Verified() {
		return true
	}
	err = c.Delete(ctx, d)
	slog.Warn("a damaged blob is removed from the cache of images", "folder", c.dir, "blob", d, "error", err)
	return false
}

// An intake is the cache to an archive that is read. Blobs that are there are only
// compared, and damaged ones replaced.
type intake struct{ *Cache }

func (in *intake) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	// The names of files in an OCI layout are digests, and containerd's importer makes
	// names for uploads of them. A file under any other name is written to be known.
	d := o.Desc.Digest
	if _, name, ok := strings.Cut(o.Ref, "tar-blobs/"); ok && d == "" {
		d = digest.Digest(strings.Replace(name, "/", ":", 1))
	}
	if d.Validate() == nil && in.whole(ctx, d) {
		return &comparison{Digester: d.Algorithm().Digester(), want: d}, nil
	}
	w, err := in.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &replacement{w, in.Cache}, nil
}

// A replacement takes the place of a damaged blob. Where there is a good one, it stays.
type replacement struct {
	content.Writer
	cache *Cache
}

func (r *replacement) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	r.cache.whole(ctx, r.Digest())
	return r.Writer.Commit(ctx, size, expected, opts...)
}

// A comparison takes a blob that is there already, and keeps nothing of it.
type comparison struct {
	digest.Digester
	want digest.Digest
}

var _ content.Writer = (*comparison)(nil)

func (c *comparison) Write(p []byte) (int, error)     { return c.Hash().Write(p) }
func (c *comparison) Close() error                    { return nil }
func (c *comparison) Status() (content.Status, error) { return content.Status{}, nil }

func (c *comparison) Truncate(int64) error {
	c.Hash().Reset()
	return nil
}

func (c *comparison) Commit(context.Context, int64, digest.Digest, ...content.Opt) error {
	if is := c.Digest(); is != c.want {
		return fmt.Errorf("it is not what its name says: its digest is %s", is)
	}
	return nil
}
