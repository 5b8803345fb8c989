package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// readFrom counts what is read of a store.
type readFrom struct {
	content.Provider
	bytes atomic.Int64
}

func (r *readFrom) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	blob, err := r.Provider.ReaderAt(ctx, desc)
	return &readBlob{blob, r}, err
}

type readBlob struct {
	content.ReaderAt
	of *readFrom
}

func (b *readBlob) ReadAt(p []byte, at int64) (int, error) {
	n, err := b.ReaderAt.ReadAt(p, at)
	b.of.bytes.Add(int64(n))
	return n, err
}

// storeOf has an archive's blobs, in files.
func storeOf(t *testing.T, archive []byte) (store content.Store, index ocispec.Index, files []string) {
	t.Helper()
	dir := t.TempDir()
	store, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, top, err := ReadArchive(t.Context(), store, bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files, err = filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return store, index, slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == top.Encoded() })
}

func TestFromAStoreComesWhatIsMissingAndNothingDamaged(t *testing.T) {
	c := startContainerd(t)
	for what, damaged := range map[string]func(blob []byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"longer":  func(b []byte) []byte { return append(b, 0) },
	} {
		for i := range 3 { // manifest, configuration and layer, in any order
			// Another image each time: what an import has left counts as there.
			store, index, files := storeOf(t, dockerArchive(t, what+strconv.Itoa(i), "app:1"))
			if len(files) != 3 {
				t.Fatalf("the blobs are %v", files)
			}
			blob, err := os.ReadFile(files[i])
			if err == nil {
				err = errors.Join(os.Remove(files[i]), os.WriteFile(files[i], damaged(blob), 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ImportFrom(c.ctx, c.client, snapshotter, store, index); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %s is imported: %v", what, filepath.Base(files[i]), err)
			}
		}
	}
	if list, err := c.client.ImageService().List(c.ctx); err != nil || len(list) != 0 {
		t.Errorf("images of damaged blobs: %v %v", list, err)
	}

	store, index, _ := storeOf(t, dockerArchive(t, "whole", "app:1", "app:2"))
	from := &readFrom{Provider: store}
	for _, again := range []bool{false, true} {
		if _, err := ImportFrom(c.ctx, c.client, snapshotter, from, index); err != nil {
			t.Fatal(err)
		}
		if known := c.status(t, "app:2"); known == nil || !known.Pinned {
			t.Errorf("CRI knows %v, want it pinned", known)
		}
		if n := from.bytes.Swap(0); (n == 0) != again {
			t.Errorf("again: %v, but %d bytes are read", again, n)
		}
	}
}
