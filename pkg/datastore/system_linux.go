package datastore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removals are the changes of a folder that make a file there another one, or
// none: writes, of which a store has many, are not among them.
const removals = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// watchFile guards the store's file until the store closes.
func (s *Store) watchFile() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch for its removal: %w (raise sysctl fs.inotify.max_user_instances)", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(s.path), removals); err != nil {
		changes.Close()
		return fmt.Errorf("watch for its removal: %w (if there is no space for it, raise sysctl fs.inotify.max_user_watches)", err)
	}
	context.AfterFunc(s.ctx, func() { changes.Close() })
	s.wg.Go(func() {
		defer changes.Close()
		// What changed does not matter: the file is there, or it is not.
		for buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1)); ; {
			if _, err := changes.Read(buf); err != nil {
				return // closed with the store
			}
			if !s.still() {
				s.rescue()
				return
			}
		}
	})
	return nil
}

// uncache has the next read of a file come from the disk.
func uncache(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// flushData has what was written to a file on the disk, and of its metadata what it
// takes to read that.
func flushData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
