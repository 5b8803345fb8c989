package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReplaceLeavesTheOldOrTheNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	has := func(want string, mode os.FileMode) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || string(text) != want {
			t.Errorf("%q, %v; want %q", text, err, want)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("in the folder: %v, %v", all, err)
		}
	}
	if err := Replace(path, 0o600, strings.NewReader("first")); err != nil {
		t.Fatal(err)
	}
	has("first", 0o600)
	if err := Replace(path, 0o666, strings.NewReader("second")); err != nil { // more than the umask gives
		t.Fatal(err)
	}
	has("second", 0o666)
	torn := errors.New("torn")
	if err := Replace(path, 0o600, io.MultiReader(strings.NewReader("thi"), iotest.ErrReader(torn))); !errors.Is(err, torn) {
		t.Errorf("a source that fails: %v", err)
	}
	has("second", 0o666)
	if err := Replace(filepath.Join(dir, "none", "file"), 0o600, strings.NewReader("")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestAFolderThatIsNotThereIsTold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if err := SyncDir(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}
