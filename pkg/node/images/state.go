package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// stateFile lies beside the archives, hidden.
const stateFile = ".imported.json"

// state remembers what came from which archive, so that an unchanged one need
// not be read again. Losing it costs one more import of each.
type state struct {
	path     string
	Archives map[string]record `json:"archives"` // by file name
}

type record struct {
	Stamp       stamp    `json:"stamp"`
	Snapshotter string   `json:"snapshotter"`
	Images      []string `json:"images"`
}

// stamp tells one version of a file from another without reading it.
type stamp struct {
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds since 1970
	Inode uint64 `json:"inode"`
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{Size: info.Size(), MTime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Inode = sys.Ino
	}
	return s
}

// loadState reads the state file of dir. One that is missing or damaged is as
// good as empty.
func loadState(dir string) (*state, error) {
	s := &state{path: filepath.Join(dir, stateFile)}
	blob, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what was imported before: %w", err)
	}
	if err == nil && json.Unmarshal(blob, s) != nil {
		s.Archives = nil
	}
	if s.Archives == nil {
		s.Archives = make(map[string]record)
	}
	return s, nil
}

// save replaces the state file as a whole. It is not synced: after a power loss
// an empty one only costs time.
func (s *state) save() error {
	blob, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	next := s.path + ".new"
	if err := os.WriteFile(next, append(blob, '\n'), 0o600); err != nil {
		return fmt.Errorf("remember what was imported: %w", err)
	}
	if err := os.Rename(next, s.path); err != nil {
		return fmt.Errorf("remember what was imported: %w", err)
	}
	return nil
}

// keep forgets all archives but those of the given names, and says whether that
// changed anything.
func (s *state) keep(names []string) bool {
	before := len(s.Archives)
	for name := range s.Archives {
		if !slices.Contains(names, name) {
			delete(s.Archives, name)
		}
	}
	return len(s.Archives) != before
}

// owners maps the name of each image that known archives brought to the first of
// them by name.
func (s *state) owners() map[string]string {
	owners := make(map[string]string)
	for file, r := range s.Archives {
		for _, image := range r.Images {
			if old, ok := owners[image]; !ok || file < old {
				owners[image] = file
			}
		}
	}
	return owners
}
