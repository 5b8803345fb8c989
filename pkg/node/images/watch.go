package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// change is one thing that happened in the watched folder.
type change struct {
	kind changeKind
	name string // of the file, without folder
}

type changeKind int

const (
	// arrived: the file was closed after writing, or moved or linked here.
	arrived changeKind = iota
	// left: the file was deleted or moved away.
	left
	// missed: the kernel dropped changes; look at everything again.
	missed
)

// watcher tells complete files from files that are being written, which the
// portable libraries do not: the kernel says when a writer closes.
type watcher struct {
	file    *os.File
	dir     string
	changes chan change
	failed  chan error
}

const watched = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE |
	unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// watch tells what happens in dir from now on, until ctx ends.
func watch(ctx context.Context, dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w (raise sysctl fs.inotify.max_user_instances)", dir, err)
	}
	w := &watcher{
		file:    os.NewFile(uintptr(fd), "inotify"),
		dir:     dir,
		changes: make(chan change),
		failed:  make(chan error, 1),
	}
	if _, err := unix.InotifyAddWatch(fd, dir, watched); err != nil {
		w.file.Close()
		return nil, fmt.Errorf("watch %s: %w (if there is no space for it, raise sysctl fs.inotify.max_user_watches)", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	go func() {
		defer stop()
		defer w.file.Close()
		w.failed <- w.read(ctx)
	}()
	return w, nil
}

func (w *watcher) read(ctx context.Context) error {
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch %s: %w", w.dir, err)
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			mask := binary.NativeEndian.Uint32(rest[unsafe.Offsetof(unix.InotifyEvent{}.Mask):])
			size := binary.NativeEndian.Uint32(rest[unsafe.Offsetof(unix.InotifyEvent{}.Len):])
			raw := rest[unix.SizeofInotifyEvent:][:size]
			rest = rest[unix.SizeofInotifyEvent:][size:]

			c, told, err := w.decode(mask, string(bytes.TrimRight(raw, "\x00")))
			if err != nil {
				return err
			}
			if !told {
				continue
			}
			select {
			case w.changes <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (w *watcher) decode(mask uint32, name string) (change, bool, error) {
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		return change{kind: missed}, true, nil
	case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		return change{}, false, fmt.Errorf("watch %s: the folder was removed or moved away", w.dir)
	case mask&unix.IN_ISDIR != 0:
		return change{}, false, nil
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		return change{kind: left, name: name}, true, nil
	case mask&unix.IN_CREATE != 0:
		// A new file is followed by the close of its writer; a link is not.
		return change{kind: arrived, name: name}, isLink(filepath.Join(w.dir, name)), nil
	}
	return change{kind: arrived, name: name}, true, nil
}

func isLink(path string) bool {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Nlink > 1
}

// beingWritten says whether any process has the open file f open for writing.
// The kernel grants a read lease only on a file that nobody writes; where a
// file system knows no leases, the answer is no.
func beingWritten(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var lease error
	if err := raw.Control(func(fd uintptr) {
		if _, lease = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); lease == nil {
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		}
	}); err != nil {
		return false
	}
	return errors.Is(lease, unix.EAGAIN)
}
