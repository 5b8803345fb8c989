package scratch

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFoldersOfTheDeadGoAndOthersStay(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	at := func(names ...string) string { return filepath.Join(append([]string{os.TempDir()}, names...)...) }
	alive, err := Make()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := Make()
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // as the kernel does when a process ends
	for _, dir := range []string{at("knarr-of-another"), at("another", "file"), at("knarr-beginning")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// One that is just being made.
	if err := os.WriteFile(at("knarr-beginning", lockName+".new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A link leads to what is not ours.
	if err := os.WriteFile(at("another", lockName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("another"), at("knarr-link")); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Error(err)
	}
	for path, there := range map[string]bool{
		alive.Path: true, dead.Path: false, at("knarr-of-another"): true, at("knarr-beginning"): true, at("another", "file"): true, at("knarr-link"): true,
	} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v, want it to be there: %v", filepath.Base(path), err, there)
		}
	}
	if err := alive.Remove(); err != nil {
		t.Error(err)
	}
	if err := alive.Remove(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := os.Stat(alive.Path); err == nil {
		t.Error("it is still there")
	}
}
