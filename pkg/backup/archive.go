package backup

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
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	// format is the first field of every manifest. Another one is of a version that
	// this one does not know.
	format       = "knarr-backup/1"
	manifestName = "manifest.json"
	// manifestLimit bounds what is read of a stranger's file before it is known to be
	// a backup, in bytes.
	manifestLimit = 4 << 20
	// windowSize is how much of an archive is kept in memory to compress it.
	windowSize = 1 << 20
)

// Manifest is the first file of a backup and tells of the others.
type Manifest struct {
	Format string `json:"format"`
	// Created is when the copy of the store was begun.
	Created time.Time `json:"created"`
	// Cluster is the SHA-256 of the certificate of the authority that the API server
	// serves by, as join tokens have it.
	Cluster string `json:"cluster"`
	// Node is that of the server.
	Node string `json:"node"`
	// Knarr and Kubernetes are the versions that made the backup.
	Knarr      string `json:"knarr"`
	Kubernetes string `json:"kubernetes"`
	// Driver keeps the store; Revision is its last one.
	Driver   string `json:"driver"`
	Revision int64  `json:"revision"`
	// Files are those of <data-dir>/server, in the order of the archive.
	Files []File `json:"files"`
}

// File is one of a backup.
type File struct {
	// Path is relative to <data-dir>/server, with slashes.
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// source is a file to be archived, with where it is.
type source struct {
	File
	from string
}

func (s *source) measure() error {
	f, err := os.Open(s.from)
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	h := sha256.New()
	if s.Size, err = io.Copy(h, f); err != nil {
		return fmt.Errorf("back up %s: %w", s.from, err)
	}
	s.Mode, s.SHA256 = uint32(info.Mode().Perm()), hex.EncodeToString(h.Sum(nil))
	return nil
}

// writeArchive writes a manifest and the files that it tells of.
func writeArchive(to io.Writer, m Manifest, files []source) error {
	z, err := zstd.NewWriter(to, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(windowSize))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	add := func(name string, mode, size int64, from io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: size, ModTime: m.Created, Format: tar.FormatPAX}); err != nil {
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
			return fmt.Errorf("add %s: %w", f.from, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func addFile(f source, add func(string, int64, int64, io.Reader) error) error {
	in, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer in.Close()
	// Should it have changed since it was measured, tar tells, or the hash will.
	return add(f.Path, int64(f.Mode), f.Size, in)
}

// errForeign is what a file is told to be that is no backup.
var errForeign = errors.New("it is not a backup of Knarr's")

// archive is one that is read.
type archive struct {
	manifest Manifest
	raw      io.Reader
	z        *zstd.Decoder
	t        *tar.Reader
}

func (a *archive) Close() { a.z.Close() }

func openArchive(from io.Reader) (*archive, error) {
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<40), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	a := &archive{raw: from, z: z, t: tar.NewReader(z)}
	if err := a.readManifest(); err != nil {
		z.Close()
		return nil, err
	}
	return a, nil
}

func (a *archive) readManifest() error {
	h, err := a.t.Next()
	switch {
	case errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, tar.ErrHeader), errors.Is(err, io.EOF):
		return errForeign
	case err != nil:
		return damaged(err)
	case h.Name != manifestName || h.Size > manifestLimit:
		return errForeign
	}
	text, err := io.ReadAll(a.t)
	if err != nil {
		return damaged(err)
	}
	if err := json.Unmarshal(text, &a.manifest); err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	if a.manifest.Format != format {
		if strings.HasPrefix(a.manifest.Format, "knarr-backup/") {
			return fmt.Errorf("it is of the form %s, and this version knows %s: use the version that made it, or a newer one", a.manifest.Format, format)
		}
		return errForeign
	}
	for _, f := range a.manifest.Files {
		if !fs.ValidPath(f.Path) || f.Path == "." || f.Size < 0 || f.Mode&^0o777 != 0 {
			return damaged(fmt.Errorf("its manifest names the file %q", f.Path))
		}
	}
	return nil
}

func damaged(why error) error {
	return fmt.Errorf("it is damaged (%w): use another backup", why)
}

// unpack writes all files into a folder that is empty, and checks each.
func (a *archive) unpack(into string) error {
	left := map[string]File{}
	for _, f := range a.manifest.Files {
		left[f.Path] = f
	}
	if len(left) != len(a.manifest.Files) {
		return damaged(errors.New("its manifest names a file twice"))
	}
	for {
		h, err := a.t.Next()
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
		if err := unpackFile(into, f, a.t); err != nil {
			return err
		}
	}
	for path := range left {
		return damaged(fmt.Errorf("%s is missing", path))
	}
	// What is behind has to be whole, too: a seal tells only at its end.
	for _, r := range []io.Reader{a.z, a.raw} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return damaged(err)
		}
	}
	return nil
}

func unpackFile(into string, f File, from io.Reader) error {
	path := filepath.Join(into, filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("unpack backup: %w", err)
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(f.Mode))
	if err != nil {
		return fmt.Errorf("unpack backup: %w", err)
	}
	w := &hashing{to: out, hash: sha256.New()}
	_, err = io.Copy(w, from)
	switch {
	case w.err != nil:
		err = fmt.Errorf("unpack backup: %w", w.err)
	case err != nil:
		err = damaged(err)
	case hex.EncodeToString(w.hash.Sum(nil)) != f.SHA256:
		err = damaged(fmt.Errorf("%s is not as its manifest says", f.Path))
	default:
		if err = out.Sync(); err != nil {
			err = fmt.Errorf("unpack backup: %w", err)
		}
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

// sources lists what is to be kept of a server's folder, in order, but for the
// store's own file.
func sources(dir string) ([]source, error) {
	found, err := list(dir)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if err := found[i].measure(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// list is sources before anything is read.
func list(dir string) ([]source, error) {
	var found []source
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(leftOut, rel) {
			return fs.SkipDir
		}
		// A name with a dot is a file that is being written.
		if d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			found = append(found, source{File: File{Path: filepath.ToSlash(rel)}, from: path})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	return found, nil
}

// leftOut are folders of a server's: the store, which is copied in another way,
// what was saved of one, what only a running server needs, and logs.
var leftOut = []string{"db", "db.rescued", "run", "logs"}
