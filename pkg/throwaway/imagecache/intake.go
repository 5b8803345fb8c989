package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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
	return in.upload()
}

// An upload is a blob that is being read. It takes the place of one that is damaged.
//
// Unlike containerd's it does not wait for the disk, which would take longer than
// all else: who uses a blob verifies it.
type upload struct {
	digest.Digester
	cache *Cache
	file  *os.File
	size  int64
}

func (c *Cache) upload() (*upload, error) {
	if err := os.MkdirAll(c.ingest(), 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(c.ingest(), "blob-*")
	if err != nil {
		return nil, err
	}
	return &upload{Digester: digest.Canonical.Digester(), cache: c, file: file}, nil
}

func (u *upload) Write(p []byte) (int, error) {
	n, err := u.file.Write(p)
	u.Hash().Write(p[:n]) // a hash takes everything
	u.size += int64(n)
	return n, err
}

// Close forgets what is not committed.
func (u *upload) Close() error {
	if u.file == nil {
		return nil
	}
	err := errors.Join(u.file.Close(), os.Remove(u.file.Name()))
	u.file = nil
	return err
}

func (u *upload) Status() (content.Status, error) { return content.Status{Offset: u.size}, nil }

func (u *upload) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("cut a blob to %d bytes: only from its start can it be written again", size)
	}
	u.Hash().Reset()
	u.size = 0
	_, err := u.file.Seek(0, io.SeekStart)
	return errors.Join(err, u.file.Truncate(0))
}

func (u *upload) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	is := u.Digest()
	switch {
	case size > 0 && size != u.size:
		return fmt.Errorf("it has %d bytes, and should have %d", u.size, size)
	case expected != "" && expected != is:
		return fmt.Errorf("it is not what its name says: its digest is %s, and should be %s", is, expected)
	}
	path := u.cache.blob(is)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := errors.Join(u.file.Close(), os.Rename(u.file.Name(), path)); err != nil {
		return err
	}
	u.file = nil
	return nil
}

// A comparison takes a blob that is there already, and keeps nothing of it.
type comparison struct {
	digest.Digester
	want digest.Digest
}

var _, _ content.Writer = (*comparison)(nil), (*upload)(nil)

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
