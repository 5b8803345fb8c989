// Package imagecache keeps the images that throwaway clusters were given for the
// clusters that come after them: a content-addressed store of blobs, and of each
// source of images what it gave last. A folder holds
//
//	lock      held by everyone who uses the cache, and by a sweep alone
//	sources/  a file for each source; its time is that of the last load
//	blobs/    each by its digest, as containerd's content store keeps them
//	ingest/   blobs that are being read
//
// A blob is in its place when it is whole, and a source is written down when all its
// blobs are: whoever is killed leaves only what a sweep removes. What a power cut has
// taken of a blob is noticed by who uses it, and read again.
package imagecache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/durable"
	"github.com/knarr-dev/knarr/pkg/node/images"
)

// unusedFor is how long images stay that no cluster loads.
const unusedFor = 14 * 24 * time.Hour

// A Source is where images come from.
type Source struct {
	// Name tells it from others. What a source gave before is not kept. Without one it
	// is named by the images that it gives.
	Name string
	// Version tells whether Read would give what it gave before. Empty, or nil: that is
	// not known.
	Version func(context.Context) string
	// Read writes an archive and returns its version; empty if it may have changed
	// meanwhile.
	Read func(ctx context.Context, to io.Writer) (version string, err error)
}

// given is what a source gave, in its file.
type given struct {
	Source  string        `json:"source"`
	Version string        `json:"version,omitempty"`
	Index   digest.Digest `json:"index"`
}

// A Cache is in use until Close. Nothing goes from it meanwhile but damaged blobs.
type Cache struct {
	content.Store
	dir  string
	lock *os.File
	temp bool
}

// Open begins to use the cache in a folder, which is made if it is missing. What
// has not been used for long is removed, unless others use the cache now.
func Open(ctx context.Context, dir string) (_ *Cache, err error) {
	c := &Cache{dir: dir}
	if err := os.MkdirAll(c.sources(), 0o700); err != nil {
		return nil, fmt.Errorf("make a cache of images: %w", err)
	}
	if c.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open the cache of images: %w", err)
	}
	defer func() {
		if err != nil {
			c.lock.Close()
		}
	}()
	if c.Store, err = local.NewStore(dir); err != nil {
		return nil, fmt.Errorf("open the cache of images: %w", err)
	}
	if flock(c.lock, unix.LOCK_EX|unix.LOCK_NB) == nil {
		if err := c.sweep(ctx, time.Now().Add(-unusedFor)); err != nil {
			return nil, fmt.Errorf("sweep the cache of images: %w", err)
		}
	}
	if err := flock(c.lock, unix.LOCK_SH); err != nil {
		return nil, fmt.Errorf("lock the cache of images: %w", err)
	}
	return c, nil
}

// OpenTemp makes a cache in a new folder, which Close removes.
func OpenTemp(ctx context.Context, parent string) (*Cache, error) {
	dir, err := os.MkdirTemp(parent, "images-*")
	if err != nil {
		return nil, fmt.Errorf("make room for images: %w", err)
	}
	c, err := Open(ctx, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c.temp = true
	return c, nil
}

// Close ends the use of the cache.
func (c *Cache) Close() error {
	err := c.lock.Close()
	if c.temp {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

func flock(f *os.File, how int) error {
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(f.Fd()), how)
	}
	return err
}

// Use calls fn with the index of what a source gives, whose blobs are in the cache
// then. The source is read only if it has changed or blobs are missing. Blobs of
// before are not verified for that; fn does, and if it fails by damaged ones, they
// are removed, the source is read, and fn is called once more.
func (c *Cache) Use(ctx context.Context, src Source, fn func(ocispec.Index) error) error {
	if index, top, known := c.known(ctx, src); known {
		err := fn(index)
		if err == nil || ctx.Err() != nil || !c.damaged(ctx, index, top) {
			return err
		}
	}
	index, err := c.read(ctx, src)
	if err != nil {
		return err
	}
	return fn(index)
}

// known gives what a source gave before, if it would give the same again.
func (c *Cache) known(ctx context.Context, src Source) (index ocispec.Index, top digest.Digest, ok bool) {
	version := ""
	if src.Version != nil {
		version = src.Version(ctx)
	}
	if version == "" {
		return index, "", false
	}
	file := c.file(src.Name)
	was, err := readGiven(file)
	if err != nil || was.Source != src.Name || was.Version != version || !c.whole(ctx, was.Index) {
		return index, "", false
	}
	blob, err := content.ReadBlob(ctx, c, ocispec.Descriptor{Digest: was.Index})
	if err != nil || json.Unmarshal(blob, &index) != nil {
		return index, "", false
	}
	if _, err := images.Complete(ctx, c, index); err != nil {
		return index, "", false
	}
	if err := os.Chtimes(file, time.Time{}, time.Now()); err != nil {
		slog.Debug("the use of a cached image is not noted", "source", src.Name, "error", err)
	}
	return index, was.Index, true
}

// damaged removes the damaged ones among the blobs of an index, and says whether
// that or something else has left it incomplete.
func (c *Cache) damaged(ctx context.Context, index ocispec.Index, top digest.Digest) bool {
	c.each(ctx, top, func(d digest.Digest) { c.whole(ctx, d) })
	_, err := images.Complete(ctx, c, index)
	return err != nil
}

// read brings what a source gives into the cache, and notes it if it's whole and can
// be used.
func (c *Cache) read(ctx context.Context, src Source) (ocispec.Index, error) {
	r, w := io.Pipe()
	defer context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })()
	var version string
	done := make(chan error, 1)
	go func() {
		var err error
		version, err = src.Read(ctx, w)
		w.CloseWithError(err)
		done <- err
	}()
	index, top, err := images.ReadArchive(ctx, &intake{c}, r)
	r.CloseWithError(errUnread)
	select {
	case rerr := <-done:
		// If the source has failed, the archive is not to blame.
		if rerr != nil && !errors.Is(rerr, errUnread) {
			return index, rerr
		}
	case <-ctx.Done(): // it may wait for somebody who types
		return index, context.Cause(ctx)
	}
	if err != nil {
		return index, err
	}
	names, err := images.Complete(ctx, c, index)
	if err != nil {
		return index, err
	}
	note := given{Source: src.Name, Version: version, Index: top}
	if note.Source == "" {
		note.Source = strings.Join(names, " ")
	}
	text, err := json.MarshalIndent(note, "", "  ")
	if err == nil {
		err = durable.Replace(c.file(note.Source), 0o600, bytes.NewReader(text))
	}
	if err != nil {
		// The images are there; the next cluster reads them again.
		slog.Debug("a source of images is not noted", "source", note.Source, "error", err)
	}
	return index, nil
}

// errUnread ends the writing of an archive that nobody reads on.
var errUnread = errors.New("the rest of the archive is not read")

// each calls fn with the digest of an index and all that it leads to.
func (c *Cache) each(ctx context.Context, top digest.Digest, fn func(digest.Digest)) {
	handler := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		fn(desc.Digest)
		// What is missing or damaged leads to nothing.
		children, err := ctrimages.Children(ctx, c, desc)
		if err != nil {
			return nil, nil
		}
		return children, nil
	}
	_ = ctrimages.Walk(ctx, ctrimages.HandlerFunc(handler), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: top})
}

// sweep removes what was last used before some time, and what those have left who
// were killed or failed. Nobody else uses the cache.
func (c *Cache) sweep(ctx context.Context, before time.Time) error {
	if err := os.RemoveAll(c.ingest()); err != nil {
		return err
	}
	files, err := os.ReadDir(c.sources())
	if err != nil {
		return err
	}
	wanted := map[digest.Digest]bool{}
	for _, f := range files {
		path := filepath.Join(c.sources(), f.Name())
		info, err := f.Info()
		if err != nil {
			return err
		}
		was, err := readGiven(path)
		if err != nil || path != c.file(was.Source) || info.ModTime().Before(before) {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		c.each(ctx, was.Index, func(d digest.Digest) { wanted[d] = true })
	}
	err = c.Walk(ctx, func(i content.Info) error {
		if wanted[i.Digest] || i.Digest.Validate() != nil {
			return nil
		}
		return c.Delete(ctx, i.Digest)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there were no blobs yet
	}
	return err
}

func (c *Cache) sources() string { return filepath.Join(c.dir, "sources") }

func (c *Cache) ingest() string { return filepath.Join(c.dir, "ingest") }

// blob is where the store looks for one.
func (c *Cache) blob(d digest.Digest) string {
	return filepath.Join(c.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func (c *Cache) file(source string) string {
	return filepath.Join(c.sources(), digest.FromString(source).Encoded())
}

func readGiven(path string) (g given, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return g, err
	}
	return g, json.Unmarshal(text, &g)
}
