package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCrictlIsFoundBesideKnarrThenInPATH(t *testing.T) {
	top := t.TempDir()
	put := func(name string) string {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	self := put("bin/knarr")
	// As an installation makes them: links by the names of tools.
	if err := os.Symlink("knarr", filepath.Join(top, "bin", "crictl")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(top, "bin") + ":" + filepath.Join(top, "other")
	find := func(want string) {
		t.Helper()
		if got, err := findCrictl(self, path); err != nil || got != want {
			t.Errorf("findCrictl: %q, %v; want %s", got, err, want)
		}
	}

	if got, err := findCrictl(self, path); err == nil || !strings.Contains(err.Error(), filepath.Join(top, "bin", "knarr-crictl")) {
		t.Errorf("findCrictl: %q, %v; want an error that names where it belongs", got, err)
	}
	find(put("other/crictl"))
	find(put("other/knarr-crictl"))
	find(put("bin/knarr-crictl"))
}
