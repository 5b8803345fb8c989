// Package pack writes the archives that package bundle unpacks.
//
// An archive is a .tar.zst that any tar can read, in several zstd frames. A
// skippable frame at its head holds the index; each group of files is a frame
// of its own, so that groups can be decompressed at the same time and a group
// that is rarely needed can stay packed.
package pack

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

// Group is what goes into one frame.
type Group struct {
	Lazy  bool
	Files []File
}

// File is one file to pack. Name is its path in the bundle.
type File struct {
	Name string
	Mode fs.FileMode
	Data []byte
}

// Compress turns the bytes of one group into a single zstd frame.
type Compress func(context.Context, []byte) ([]byte, error)

// Write packs groups, in their order, to w. Files are sorted within a group
// and carry no times or owners, so equal contents give equal bytes. Versions
// (what is in the archive, by name) are stored in the index.
func Write(ctx context.Context, w io.Writer, versions map[string]string, groups []Group, compress Compress) (bundle.Index, error) {
	ix := bundle.Index{Format: bundle.Format, Versions: versions}
	var body [][]byte
	var offset int64
	for i, g := range groups {
		files := slices.SortedFunc(slices.Values(g.Files), func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
		raw, err := segment(files, i == len(groups)-1)
		if err != nil {
			return ix, fmt.Errorf("pack group %d: %w", i, err)
		}
		packed, err := compress(ctx, raw)
		if err != nil {
			return ix, fmt.Errorf("pack group %d: %w", i, err)
		}
		out := bundle.Group{Lazy: g.Lazy, Offset: offset, Length: int64(len(packed)), Size: int64(len(raw))}
		for _, f := range files {
			sum := sha256.Sum256(f.Data)
			out.Files = append(out.Files, bundle.File{
				Name: f.Name, Size: int64(len(f.Data)), Mode: f.Mode.Perm(), SHA256: hex.EncodeToString(sum[:]),
			})
		}
		ix.Groups = append(ix.Groups, out)
		body = append(body, packed)
		offset += out.Length
	}
	head, err := bundle.MarshalIndex(ix)
	if err != nil {
		return ix, err
	}
	for _, b := range append([][]byte{head}, body...) {
		if _, err := w.Write(b); err != nil {
			return ix, fmt.Errorf("write bundle: %w", err)
		}
	}
	return ix, nil
}

// segment is a stretch of a tar; only the last one carries tar's end mark.
func segment(files []File, last bool) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	end := tw.Flush
	if last {
		end = tw.Close
	}
	if err := end(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Zstd compresses with the zstd tool at level 19, with a window as wide as the
// group: the executables of one group share much of Go's libraries, which the
// usual window is too narrow to see (it halves the size of a group).
func Zstd(ctx context.Context, raw []byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "knarr-pack-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// From a file, zstd knows the size and writes it into the frame; the
	// reader then decodes into memory of exactly that size.
	in := filepath.Join(dir, "group.tar")
	if err := os.WriteFile(in, raw, 0o600); err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	c := exec.CommandContext(ctx, "zstd", "-q", "-19", "--long=27", "--check", "--single-thread", "-c", in)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("run zstd: %w (%s); scripts/deps.sh installs it", err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}
