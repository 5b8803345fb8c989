package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// Stored is a backup as its storage knows it.
type Stored struct {
	Name string `json:"name"`
	// Created is told by the name.
	Created time.Time `json:"created"`
	Size    int64     `json:"size"`
	// Encrypted is told by the name, too.
	Encrypted bool `json:"encrypted"`
}

// Object is what a storage has under a name.
type Object struct {
	Name string
	Size int64
}

// Storage is where backups are.
type Storage interface {
	// Put stores a file under a name that is not taken: all of it, or nothing.
	Put(ctx context.Context, name string, file *os.File) error
	// Open reads a backup. Closing is up to the caller.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns all that is there, in any order.
	List(ctx context.Context) ([]Object, error)
	Delete(ctx context.Context, name string) error
	// String says where it is, for people.
	String() string
}

const (
	nameTime      = "20060102T150405.000Z"
	sealedEnding  = ".age"
	clusterLength = 8
)

var names = regexp.MustCompile(`^knarr-([0-9a-f]{8})-(\d{8}T\d{6}\.\d{3}Z)\.tar\.zst(\.age)?$`)

// nameOf makes a backup's name: names of one cluster sort by time.
func nameOf(m Manifest, sealed bool) string {
	name := fmt.Sprintf("knarr-%s-%s.tar.zst", m.Cluster[:clusterLength], m.Created.UTC().Format(nameTime))
	if sealed {
		name += sealedEnding
	}
	return name
}

// parseName reads what a name tells, unless it is of something else.
func parseName(name string) (Stored, bool) {
	parts := names.FindStringSubmatch(name)
	if parts == nil {
		return Stored{}, false
	}
	created, err := time.Parse(nameTime, parts[2])
	return Stored{Name: name, Created: created, Encrypted: parts[3] != ""}, err == nil
}

// isOf tells whether a backup is one of that cluster.
func (s Stored) isOf(cluster string) bool {
	return strings.HasPrefix(s.Name, "knarr-"+cluster[:clusterLength]+"-")
}

// Folder keeps backups as files of a folder, open to their owner alone.
type Folder struct{ Path string }

var _ Storage = Folder{}

func (f Folder) String() string { return f.Path }

// Put implements Storage. The file is on the disk when it returns.
func (f Folder) Put(_ context.Context, name string, file *os.File) error {
	if err := os.MkdirAll(f.Path, 0o700); err != nil {
		return fmt.Errorf("make folder of backups (--backup-dir): %w", err)
	}
	path := filepath.Join(f.Path, name)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("store backup: %s is there already", path)
	}
	if err := durable.Replace(path, 0o600, file); err != nil {
		return fmt.Errorf("store backup in %s: %w", f.Path, err)
	}
	return nil
}

// Open implements Storage.
func (f Folder) Open(_ context.Context, name string) (io.ReadCloser, error) {
	file, err := os.Open(filepath.Join(f.Path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no backup %s in %s; \"knarr backup list\" shows those that there are", name, f.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	return file, nil
}

// List implements Storage. A folder that does not exist has nothing.
func (f Folder) List(context.Context) ([]Object, error) {
	entries, err := os.ReadDir(f.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var all []Object
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		if info.Mode().IsRegular() {
			all = append(all, Object{e.Name(), info.Size()})
		}
	}
	return all, nil
}

// Delete implements Storage.
func (f Folder) Delete(_ context.Context, name string) error {
	if err := os.Remove(filepath.Join(f.Path, name)); err != nil {
		return fmt.Errorf("delete backup: %w", err)
	}
	return nil
}
