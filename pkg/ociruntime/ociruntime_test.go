package ociruntime

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRuntimesAreFoundByTheirPrograms(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for path, mode := range map[string]os.FileMode{
		filepath.Join(second, "crun"):                     0o755,
		filepath.Join(first, "containerd-shim-runsc-v1"):  0o755,
		filepath.Join(first, "youki"):                     0o644, // no program
		filepath.Join(second, "containerd-shim-runsc-v1"): 0o755, // comes later
	} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(first, "crun"), 0o755); err != nil {
		t.Fatal(err)
	}
	found := find([]string{"", first, second})
	if len(found) != 2 {
		t.Fatalf("found %+v", found)
	}
	if crun := found[0]; crun.Class != "crun" || crun.Path != filepath.Join(second, "crun") || crun.IsShim() || crun.Type != RuncType {
		t.Errorf("crun is %+v", crun)
	}
	if g := found[1]; g.Class != "gvisor" || g.Handler != "runsc" || g.Path != filepath.Join(first, "containerd-shim-runsc-v1") || !g.IsShim() || g.Type != "io.containerd.runsc.v1" {
		t.Errorf("gVisor is %+v", g)
	}
}

func TestNoTwoRuntimesHaveOneName(t *testing.T) {
	classes, handlers := map[string]bool{}, map[string]bool{"runc": true}
	for _, r := range Known() {
		if classes[r.Class] || handlers[r.Handler] {
			t.Errorf("%s is there twice", r.Class)
		}
		classes[r.Class], handlers[r.Handler] = true, true
	}
}
