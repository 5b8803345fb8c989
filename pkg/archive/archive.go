// Package archive is the form of files that a cluster, or its state, is kept in: a
// tar archive, compressed by zstd, whose first file is a manifest that lists the
// others with their hashes. What is read is checked against it as a whole, so that
// a damaged, cut or foreign file is told before anything is done with it.
package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	manifestName = "manifest.json"
	// manifestLimit bounds what is read of a stranger's file before it is known to be
	// ours, in bytes.
	manifestLimit = 4 << 20
	// WindowSize is how much is kept in memory to compress an archive, in bytes.
	WindowSize = 1 << 20
)

var (
	// ErrForeign is a file that has another form.
	ErrForeign = errors.New("it has another form")
	// ErrDamaged is a file that is not what was written.
	ErrDamaged = errors.New("it is damaged")
)

// File is one of an archive.
type File struct {
	// Path has slashes and leads nowhere else.
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Source is a file to be archived, with where it is.
type Source struct {
	File
	From string
}

// Measure fills in what a manifest says of the file.
func (s *Source) Measure() error {
	f, err := os.Open(s.From)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := sha256.New()
	if s.Size, err = io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", s.From, err)
	}
	s.Mode, s.SHA256 = uint32(info.Mode().Perm()), hex.EncodeToString(h.Sum(nil))
	return nil
}

// Write writes a manifest, as JSON, and the files that it tells of, in their order.
func Write(to io.Writer, manifest any, at time.Time, files []Source) error {
	z, err := zstd.NewWriter(to, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(WindowSize))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	text, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	add := func(name string, mode, size int64, from io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: size, ModTime: at, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(t, from)
		return err
	}
	if err := add(manifestName, 0o600, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	for _, f := range files {
		if err := addFile(f, add); err != nil {
			return fmt.Errorf("add %s: %w", f.From, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func addFile(f Source, add func(string, int64, int64, io.Reader) error) error {
	in, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer in.Close()
	// Should it have changed since it was measured, tar tells, or the hash will.
	return add(f.Path, int64(f.Mode), f.Size, in)
}

// Reader is an archive that is read.
type Reader struct {
	// Manifest is its text.
	Manifest []byte

	raw io.Reader
	z   *zstd.Decoder
	t   *tar.Reader
}

// Open reads an archive as far as its manifest. The caller closes it.
func Open(from io.Reader) (*Reader, error) {
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<40), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	r := &Reader{raw: from, z: z, t: tar.NewReader(z)}
	if err := r.readManifest(); err != nil {
		z.Close()
		return nil, err
	}
	return r, nil
}

// Close lets go of what Open took; from stays open.
func (r *Reader) Close() { r.z.Close() }

func (r *Reader) readManifest() error {
	h, err := r.t.Next()
	switch {
	case errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, tar.ErrHeader), errors.Is(err, io.EOF):
		return ErrForeign
	case err != nil:
		return damaged(err)
	case h.Name != manifestName || h.Size > manifestLimit:
		return ErrForeign
	}
	if r.Manifest, err = io.ReadAll(r.t); err != nil {
		return damaged(err)
	}
	return nil
}

func damaged(why error) error { return fmt.Errorf("%w: %w", ErrDamaged, why) }

// Unpack writes all files into a folder that is empty, and checks each against what
// the manifest said of it. Errors that are neither of the archive are the folder's.
func (r *Reader) Unpack(into string, files []File) error {
	left := map[string]File{}
	for _, f := range files {
		if !fs.ValidPath(f.Path) || f.Path == "." || f.Size < 0 || f.Mode&^0o777 != 0 {
			return damaged(fmt.Errorf("its manifest names the file %q", f.Path))
		}
		left[f.Path] = f
	}
	if len(left) != len(files) {
		return damaged(errors.New("its manifest names a file twice"))
	}
	for {
		h, err := r.t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		f, ok := left[h.Name]
		if !ok || h.Typeflag != tar.TypeReg || h.Size != f.Size {
			return damaged(fmt.Errorf("%s is not as its manifest says", h.Name))
		}
		delete(left, h.Name)
		if err := unpack(into, f, r.t); err != nil {
			return err
		}
	}
	for path := range left {
		return damaged(fmt.Errorf("%s is missing", path))
	}
	// What is behind has to be whole, too: a seal tells only at its end.
	for _, rest := range []io.Reader{r.z, r.raw} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return damaged(err)
		}
	}
	return nil
}

func unpack(into string, f File, from io.Reader) error {
	path := filepath.Join(into, filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(f.Mode))
	if err != nil {
		return err
	}
	w := &hashing{to: out, hash: sha256.New()}
	_, err = io.Copy(w, from)
	switch {
	case w.err != nil:
		err = w.err
	case err != nil:
		err = damaged(err)
	case hex.EncodeToString(w.hash.Sum(nil)) != f.SHA256:
		err = damaged(fmt.Errorf("%s is not as its manifest says", f.Path))
	default:
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// hashing tells errors of what it writes to from those of what is read.
type hashing struct {
	to   io.Writer
	hash hash.Hash
	err  error
}

func (h *hashing) Write(p []byte) (int, error) {
	n, err := h.to.Write(p)
	h.hash.Write(p[:n])
	h.err = err
	return n, err
}
