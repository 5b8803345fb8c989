// Package scratch makes temporary folders of which it can be told whether their maker
// lives, so that what a killed process left is removed, and nothing else.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// prefix begins the names of our folders among the machine's temporary files.
	prefix = "knarr-"
	// lockName is the file that the maker of a folder holds. It has the name only once
	// it is held.
	lockName = ".lock"
)

// Folder is one that lives until Remove, or until this process ends.
type Folder struct {
	// Path is absolute if the folder of temporary files is.
	Path string
	lock *os.File
}

// Make makes a folder for this user alone, in [os.TempDir]. First it removes those
// of dead processes.
func Make() (*Folder, error) {
	_ = Sweep() // what cannot be removed is in nobody's way
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	lock, err := hold(filepath.Join(dir, lockName))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Folder{Path: dir, lock: lock}, nil
}

func hold(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// Remove removes the folder. It may be called twice.
func (f *Folder) Remove() error {
	err := os.RemoveAll(f.Path)
	f.lock.Close()
	return err
}

// Sweep removes the folders of this user whose makers are dead. Those that no lock
// tells of are left alone.
func Sweep() error {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*", lockName))
	if err != nil {
		return err
	}
	var errs []error
	for _, lock := range found {
		if err := sweep(lock); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove what a killed process left: %w", err))
		}
	}
	return errors.Join(errs...)
}

func sweep(lock string) error {
	dir := filepath.Dir(lock)
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() {
		return err
	}
	f, err := os.OpenFile(lock, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
