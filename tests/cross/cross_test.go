// Package cross tests the executables for other processors, as `make cross`
// leaves them in dist, by qemu's emulator of one process. `make test-cross` runs
// it; each server takes minutes to start.
package cross

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/throwaway"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// An emulated server starts twenty times slower, and the machine may be busy.
const (
	startTimeout = 30 * time.Minute
	callTimeout  = 10 * time.Minute
)

func TestMain(m *testing.M) {
	if lab.MaybeInit() {
		return
	}
	os.Exit(m.Run())
}

// processor is one that Knarr is built for.
type processor struct {
	name     string // as Go calls it
	machine  elf.Machine
	class    elf.Class
	emulator string
}

// exe is the executable for it.
func (p processor) exe() string { return filepath.Join("..", "..", "dist", "knarr-"+p.name) }

// each runs a test for every processor that $KNARR_CROSS names.
func each(t *testing.T, test func(*testing.T, processor)) {
	asked := strings.Fields(os.Getenv("KNARR_CROSS"))
	if len(asked) == 0 {
		t.Skip("other processors' executables take long to build and emulate: make test-cross")
	}
	for _, p := range []processor{
		{"arm64", elf.EM_AARCH64, elf.ELFCLASS64, "qemu-aarch64-static"},
		{"arm", elf.EM_ARM, elf.ELFCLASS32, "qemu-arm-static"},
	} {
		for _, name := range asked {
			if name == p.name {
				t.Run(p.name, func(t *testing.T) { test(t, p) })
			}
		}
	}
}

func TestExecutableIsStaticAndForItsProcessor(t *testing.T) {
	each(t, func(t *testing.T, p processor) {
		f, err := elf.Open(p.exe())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != p.machine || f.Class != p.class {
			t.Errorf("it is for %v, %v", f.Machine, f.Class)
		}
		for _, prog := range f.Progs {
			if prog.Type == elf.PT_INTERP || prog.Type == elf.PT_DYNAMIC {
				t.Errorf("it has a program header %v, so it is not fully static", prog.Type)
			}
		}
		if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
			t.Error("it is not stripped")
		}
	})
}

func TestVersionTellsTheProcessor(t *testing.T) {
	each(t, func(t *testing.T, p processor) {
		out, err := exec.CommandContext(t.Context(), p.emulator, p.exe(), "version").CombinedOutput()
		for _, want := range []string{"v1.36.4+knarr1", "linux/" + p.name} {
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("want %q in what version says: %v\n%s", want, err, out)
			}
		}
	})
}

// host is a lab host in which the server of another processor runs.
type host struct {
	*throwaway.Host
	server *throwaway.Server
	log    bytes.Buffer // read it when the server has ended
}

// newHost makes a host in which the command knarr is emulated.
func newHost(t *testing.T, p processor) *host {
	t.Helper()
	l, h, err := throwaway.NewHost(t.Context(), "", p.exe(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	emulated := "#!/bin/sh\nexec " + p.emulator + " " + h.Exe + " \"$@\"\n"
	h.Exe = "/root/knarr"
	if err := os.WriteFile(h.Path(h.Exe), []byte(emulated), 0o755); err != nil {
		t.Fatal(err)
	}
	return &host{Host: h}
}

// start starts the control plane and waits until it is ready.
func (h *host) start(t *testing.T) {
	t.Helper()
	server, err := h.Start(throwaway.ServerOptions{Args: []string{"--disable-agent"}, Output: &h.log})
	if err != nil {
		t.Fatal(err)
	}
	h.server = server
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	began := time.Now()
	if err := server.Await(ctx, "READY=1", 1); err != nil {
		_ = server.Signal(syscall.SIGKILL) // it may have ended
		_ = server.Wait()
		t.Fatalf("%v\n%s", err, h.log.String())
	}
	t.Logf("ready after %s", time.Since(began).Round(time.Second))
}

// stop ends the server, which must succeed.
func (h *host) stop(t *testing.T) {
	t.Helper()
	if err := h.server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.server.Wait(); err != nil {
		t.Fatalf("the server was stopped by SIGTERM: %v\n%s", err, h.log.String())
	}
}

// knarr runs a command in the host and returns what it printed.
func (h *host) knarr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.knarrErr(t, args...)
	if err != nil {
		t.Fatalf("knarr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (h *host) knarrErr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	out, err := h.Command(ctx, h.Exe, args...).CombinedOutput()
	return string(out), err
}

func TestCheckLooksAtTheMachine(t *testing.T) {
	each(t, func(t *testing.T, p processor) {
		h := newHost(t, p)
		out, err := h.knarrErr(t, "check", "-o", "json")
		if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 2) {
			t.Fatalf("%v\n%s", err, out)
		}
		// What it finds is the emulator's machine; that it looks is what counts.
		start := strings.IndexAny(out, "[{")
		var results any
		if start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&results) != nil {
			t.Errorf("no JSON: %s", out)
		}
	})
}

func TestControlPlaneServesKubectl(t *testing.T) {
	each(t, func(t *testing.T, p processor) {
		h := newHost(t, p)
		h.start(t)
		if out := h.knarr(t, "kubectl", "version", "-o", "json"); strings.Count(out, `"linux/`+p.name+`"`) != 2 {
			t.Errorf("client and server do not both say that they are for %s:\n%s", p.name, out)
		}
		// The controller manager answers, too: it makes the pods.
		h.knarr(t, "kubectl", "create", "deployment", "web", "--image=web", "--replicas=3")
		h.knarr(t, "kubectl", "wait", "deployment/web", "--for=jsonpath={.status.replicas}=3", "--timeout=10m")
		h.knarr(t, "kubectl", "create", "configmap", "kept", "--from-literal=a=b")
		h.stop(t)

		h.start(t)
		if out := h.knarr(t, "kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); out != "b" {
			t.Errorf("after a restart the value is %q", out)
		}
		if pods := h.knarr(t, "kubectl", "get", "pods", "-l", "app=web", "-o", "name"); strings.Count(pods, "pod/") != 3 {
			t.Errorf("after a restart the pods are %q", pods)
		}
		h.stop(t)
	})
}
