package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// write unpacks the eager groups below dir, side by side.
func (a *Archive) write(dir string) error {
	var wg sync.WaitGroup
	errs := make([]error, len(a.index.Groups))
	for i, g := range a.index.Groups {
		if !g.Lazy {
			wg.Go(func() { errs[i] = a.writeGroup(dir, g) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// writeGroup unpacks one group below dir. Every error says that the archive is
// damaged, unless it comes from dir.
func (a *Archive) writeGroup(dir string, g Group) error {
	// Memory from the kernel, not the heap: it is gone at the end, and a node
	// does not carry the garbage of its first start.
	buf, err := unix.Mmap(-1, 0, int(max(g.Size, 1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("get %d bytes to unpack into: %w", g.Size, err)
	}
	defer unix.Munmap(buf)
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max(g.Size, 1))), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return err
	}
	defer zr.Close()
	raw, err := zr.DecodeAll(a.body[g.Offset:g.Offset+g.Length], buf[:0])
	if err == nil && int64(len(raw)) != g.Size {
		err = fmt.Errorf("%d bytes instead of %d", len(raw), g.Size)
	}
	if err != nil {
		return damaged(err)
	}
	in := bytes.NewReader(raw)
	tr := tar.NewReader(in)
	for _, f := range g.Files {
		h, err := tr.Next()
		if err != nil {
			return damaged(err)
		}
		if h.Name != f.Name || h.Size != f.Size {
			return damaged(fmt.Errorf("found %s of %d bytes where %s of %d should be", h.Name, h.Size, f.Name, f.Size))
		}
		at, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if f.Size > int64(len(raw))-at {
			return damaged(io.ErrUnexpectedEOF)
		}
		to := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := writeFile(to, raw[at:at+f.Size], f.Mode); err != nil {
			return err
		}
	}
	return nil
}

func damaged(err error) error {
	return fmt.Errorf("the bundle is damaged, install Knarr again: %w", err)
}

// writeFile writes a new file whose mode the umask does not change.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// syncTree brings the files below dir and the names in it to the disk. All
// files are written out before the first is waited for, so that the disk sees
// one long write.
func syncTree(dir string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		open = append(open, f)
		if d.IsDir() {
			return nil
		}
		// Only a hint: some file systems cannot, and Sync does it all then.
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range open {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	// The name of dir itself lies in its parent.
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}
