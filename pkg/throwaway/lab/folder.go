package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LockFolder runs fn while no other process of the machine does so for the same
// folder. The folder is made if it is missing, and removed again if nothing but
// the lock is left in it.
func LockFolder(dir string, fn func() error) error {
	f, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	err = fn()
	entries, rerr := os.ReadDir(dir)
	if rerr == nil && len(entries) == 1 {
		// The lock goes first, while it is held: who waits for it looks again.
		rerr = os.Remove(f.Name())
		// Another may have begun in it already.
		if gone := os.Remove(dir); !errors.Is(gone, fs.ErrExist) {
			rerr = errors.Join(rerr, gone)
		}
	}
	return errors.Join(err, rerr)
}

func lockFolder(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make state folder: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the folder was removed in between
		}
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		there, err := os.Stat(path)
		held, herr := f.Stat()
		if err == nil && herr == nil && os.SameFile(there, held) {
			return f, nil
		}
		f.Close() // who held it before removed it
	}
}
