package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// tempPattern is what files are called before they are moved into place.
const tempPattern = ".*.new"

// folder is where the files are. What is written to it comes into place at
// commit, all together: syncs that follow one another closely share their cost,
// which on a slow card is many milliseconds each.
type folder struct {
	dir string

	mu      sync.Mutex
	staged  []*pending
	changes []string
}

// openFolder makes the folder when missing, closes it to others, and removes
// what a crash in the middle of a write left.
func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the certificates: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close the folder of the certificates to others: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return nil, fmt.Errorf("look for unfinished files in %s: %w", dir, err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove unfinished file: %w", err)
		}
	}
	return &folder{dir: dir}, nil
}

func (f *folder) path(file string) string { return filepath.Join(f.dir, file) }

// read returns nil for a file that does not exist. One that others may read is
// closed to them.
func (f *folder) read(file string) ([]byte, error) {
	path := f.path(file)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate or key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, fmt.Errorf("close %s to others: %w", path, err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate or key: %w", err)
	}
	if text == nil {
		text = []byte{}
	}
	return text, nil
}

// write stages the file. Files come into place in the order of their writes.
func (f *folder) write(file string, text []byte, why string) error {
	p, err := stage(f.path(file), text, 0o600, -1)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.staged = append(f.staged, p)
	f.changes = append(f.changes, file+" "+why)
	return nil
}

// commit brings what was staged into place, on disk when it returns.
func (f *folder) commit() error {
	if len(f.staged) == 0 {
		return nil
	}
	defer f.discard()
	var syncs []func() error
	for _, p := range f.staged {
		syncs = append(syncs, p.sync)
	}
	if err := inParallel(syncs...); err != nil {
		return err
	}
	for len(f.staged) > 0 {
		if err := f.staged[0].place(); err != nil {
			return err
		}
		f.staged = f.staged[1:]
	}
	return durable.SyncDir(f.dir)
}

// discard removes what is staged and not in place.
func (f *folder) discard() {
	for _, p := range f.staged {
		p.discard()
	}
	f.staged = nil
}

// pending is a file's new content, beside the path that it is for.
type pending struct {
	temp *os.File
	path string
}

// stage writes text beside path. A gid of -1 leaves the group alone.
func stage(path string, text []byte, mode fs.FileMode, gid int) (*pending, error) {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPattern)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	p := &pending{temp, path}
	err = temp.Chmod(mode)
	if gid >= 0 && err == nil {
		err = temp.Chown(-1, gid)
	}
	if err == nil {
		_, err = temp.Write(text)
	}
	if err != nil {
		p.discard()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return p, nil
}

func (p *pending) sync() error {
	if err := errors.Join(p.temp.Sync(), p.temp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", p.path, err)
	}
	return nil
}

// place needs a sync before it: whatever happens then, the path holds the old
// content or the new.
func (p *pending) place() error {
	if err := os.Rename(p.temp.Name(), p.path); err != nil {
		return fmt.Errorf("write %s: %w", p.path, err)
	}
	return nil
}

func (p *pending) discard() {
	p.temp.Close()
	os.Remove(p.temp.Name())
}

// replaceFile gives path new content in one step, on disk when it returns.
func replaceFile(path string, text []byte, mode fs.FileMode, gid int) error {
	p, err := stage(path, text, mode, gid)
	if err != nil {
		return err
	}
	if err := p.sync(); err != nil {
		p.discard()
		return err
	}
	if err := p.place(); err != nil {
		p.discard()
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
