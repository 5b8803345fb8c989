package knarrtest

import (
	"context"
	"os"
	"sync"
	"testing"
)

// shared is the control plane of the test program, between Main and its end.
var shared struct {
	mu      sync.Mutex
	main    bool // Main was called
	opts    []Option
	started bool
	plane   *ControlPlane
	err     error
}

// Main is the body of a TestMain whose tests use Shared or Node. It returns the code
// to exit with:
//
//	func TestMain(m *testing.M) { os.Exit(knarrtest.Main(m)) }
//
// The shared control plane starts with the first test that asks for it, with opts,
// and stops when all tests have ended.
func Main(m *testing.M, opts ...Option) int {
	if isChild() {
		return 0
	}
	shared.mu.Lock()
	shared.main, shared.opts = true, opts
	shared.mu.Unlock()
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.plane != nil {
		shared.plane.close()
	}
	return code
}

// Shared is the control plane that all tests of the program share. Each of them
// makes a namespace of its own; see ControlPlane.Namespace.
func Shared(t testing.TB) *ControlPlane {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.main {
		t.Fatal(noMain)
	}
	if !shared.started {
		shared.started = true
		// It outlives the test that happens to be the first.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), readyWithin)
		defer cancel()
		shared.plane, shared.err = start(ctx, shared.opts)
	}
	if shared.err != nil {
		t.Fatalf("knarrtest: the shared control plane: %v", shared.err)
	}
	return shared.plane
}

// hasMain tells whether the test program's TestMain is ours.
func hasMain() bool {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return shared.main
}

const noMain = "knarrtest: this needs a TestMain: func TestMain(m *testing.M) { os.Exit(knarrtest.Main(m)) }"

// debugging tells whether all that upstream's parts say is to be seen.
func debugging() bool { return os.Getenv("KNARR_TEST_DEBUG") != "" }
