// Package durable writes files that a power cut leaves whole: with what they had
// before, or with what they were given.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace gives path what from has, in one step, and with that mode whatever the
// umask is. It is on the disk when Replace returns. The folder must exist; what a
// crash leaves in it is a file whose name begins with a dot.
func Replace(path string, mode fs.FileMode, from io.Reader) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which after the rename is not there
	_, err = io.Copy(f, from)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir has the names in a folder on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
