package flakydisk

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// specEnv has a process serve a disk instead of what it was made for.
const specEnv = "KNARR_FLAKYDISK"

// spec says what to serve, and where.
type spec struct {
	Dir  string // to mount at
	Size int64
}

// order is a line from the test, answer the line in return.
type order struct {
	Do   string // power, cut, fail, heal, count
	Keep float64
	Seed uint64
}

type answer struct {
	File   string // of the disk, after power
	Counts Counts
	Err    string
}

// MaybeServe serves a disk when this process was started to, and tells whether
// it was: then main must return. Call it first thing in TestMain. It is a
// process of its own so that the kernel never waits for one that waits for the
// kernel; when it dies, all that is mounted on it gets errors.
func MaybeServe() bool {
	text := os.Getenv(specEnv)
	if text == "" {
		return false
	}
	var s spec
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		err = serve(s, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "serve disk:", err)
	}
	return true
}

// serve answers orders until there are no more.
func serve(s spec, in io.Reader, out io.Writer) error {
	img, err := newImage(s.Size)
	if err != nil {
		return err
	}
	root := &fs.Inode{}
	_, err = fs.Mount(s.Dir, root, &fs.Options{MountOptions: fuse.MountOptions{
		// The machine need not have fusermount.
		DirectMount: true, DirectMountStrict: true, FsName: "flakydisk", Name: "flakydisk",
	}})
	if err != nil {
		return fmt.Errorf("mount %s: %w", s.Dir, err)
	}
	// Whoever still uses the disk gets errors once this process has ended.
	defer unix.Unmount(s.Dir, unix.MNT_DETACH)

	answers := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var o order
		a := answer{}
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			a.Err = err.Error()
		}
		switch o.Do {
		case "power":
			g := img.power()
			a.File = fmt.Sprintf("disk%d", g)
			f := &file{img: img, generation: g}
			root.AddChild(a.File, root.NewPersistentInode(context.Background(), f, fs.StableAttr{Mode: unix.S_IFREG}), true)
		case "cut":
			img.cut(o.Keep, rand.New(rand.NewPCG(o.Seed, 0)))
		case "fail", "heal":
			img.fail(o.Do == "fail")
		case "count":
		default:
			a.Err = "unknown order " + o.Do
		}
		a.Counts = img.count()
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

// file is the disk under one power supply: a new one has a new name, so that
// nothing the kernel remembers of the old one outlives a power cut.
type file struct {
	fs.Inode
	img        *image
	generation int
}

var (
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeSetattrer = (*file)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = unix.S_IFREG | 0o600
	out.Size = uint64(f.img.size())
	out.Blksize = 4096
	out.Blocks = out.Size / sector
	return 0
}

// Setattr changes nothing: a disk has the size it has.
func (f *file) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.img.read(f.generation, dest, off)
	if err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n, err := f.img.write(f.generation, data, off)
	if err != nil {
		return 0, syscall.EIO
	}
	return uint32(n), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if err := f.img.flush(f.generation); err != nil {
		return syscall.EIO
	}
	return 0
}
