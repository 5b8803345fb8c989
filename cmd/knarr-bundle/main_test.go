package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// What is linked in and what is in the bundle must be of one release: the shim
// speaks to the containerd of this module.
func TestBundledVersionsMatchThisModule(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(programs(), tools()...) {
		for line := range strings.Lines(string(mod)) {
			f := strings.Fields(strings.TrimPrefix(line, "require "))
			if len(f) >= 2 && f[0] == p.module && f[1] != p.version {
				t.Errorf("%s: go.mod has %s, versions.go has %s", p.module, f[1], p.version)
			}
		}
		if p.ldflags != "" && !strings.HasSuffix(p.ldflags, "="+p.version) {
			t.Errorf("%s %s is stamped with another version: %s", p.module, p.version, p.ldflags)
		}
	}
}

func TestPauseEndsOnSIGTERMAsProcessOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	machine, err := targetOf(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "pause")
	data, err := compileC(t.Context(), t.TempDir(), "pause", machine)
	if err != nil {
		t.Fatal(err)
	}
	if err := static(data); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(bin)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	// The kernel drops a signal that process 1 does not wait for yet, so it is
	// sent until it was heard.
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("pause ended with %v, want exit code 0", err)
			}
			return
		default:
			_ = c.Process.Signal(syscall.SIGTERM) // it may be gone already
		}
	}
}

func TestDynamicProgramIsRefused(t *testing.T) {
	self, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no dynamic program here")
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := static(data); err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("static: %v", err)
	}
	if err := static(bytes.Repeat([]byte("x"), 100)); err == nil {
		t.Error("static: text passes for an executable")
	}
}
