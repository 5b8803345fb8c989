// Package harness gives tests a real node: a lab host, `knarr server` in it,
// and the real clients to drive it.
//
// It stands in for systemd: a node is ready when the server says READY=1, no
// test asks in a loop.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// TestImage is in every node unless Options.Images says otherwise.
const TestImage = "knarr.dev/test:1"

// Main is TestMain's whole body. Packages that `go test` runs at the same time
// take turns, since two nodes at once make each other slow. Nodes that were made
// by Lazy are handed in, to be stopped at the end.
func Main(m *testing.M, shared ...*LazyNode) {
	if lab.MaybeInit() {
		return
	}
	os.Exit(run(m, shared))
}

func run(m *testing.M, shared []*LazyNode) int {
	if _, err := findParts(); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	turn, err := takeTurn()
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	defer turn.Close()
	code := m.Run()
	for _, l := range shared {
		if err := l.close(); err != nil {
			fmt.Fprintln(os.Stderr, "harness:", err)
			code = max(code, 1)
		}
	}
	return code
}

// TakeTurn waits until no other test program runs nodes, for a test whose program
// has a TestMain of its own. The turn ends with the test.
func TakeTurn(t testing.TB) {
	t.Helper()
	turn, err := takeTurn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { turn.Close() })
}

// takeTurn waits until no other test program runs nodes on this machine.
func takeTurn() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "knarr-node.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("take turns with other tests: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("take turns with other tests: %w", err)
		}
	}
}

// parts are what was built beforehand.
type parts struct{ exe, testImage string }

func findParts() (parts, error) {
	root, err := repository()
	if err != nil {
		return parts{}, err
	}
	p := parts{exe: os.Getenv("KNARR"), testImage: filepath.Join(root, "build", "images", "test.tar")}
	if p.exe == "" {
		p.exe = filepath.Join(root, "dist", "knarr")
	}
	for _, file := range []string{p.exe, p.testImage} {
		if _, err := os.Stat(file); err != nil {
			return p, fmt.Errorf("tests of nodes need what was built before: run `make build images`: %w", err)
		}
	}
	return p, nil
}

// repository is the folder with go.mod, above the one that the test runs in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("find the repository: no go.mod above the working folder")
}

// Exe is the Knarr under test, $KNARR or dist/knarr.
func Exe(t testing.TB) string {
	t.Helper()
	p, err := findParts()
	if err != nil {
		t.Fatal(err)
	}
	return p.exe
}

// Testbox is the program in the test image, which runs outside of it too.
func Testbox(t testing.TB) string {
	t.Helper()
	p, err := findParts()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(filepath.Dir(p.testImage), "testbox")
}

// CopyFile copies a file of the machine, to a path of a host for instance.
func CopyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, data, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A LazyNode is shared by the tests of a package. The first that asks starts it.
type LazyNode struct {
	opts  Options
	asked chan struct{} // holds the right to look at node and err
	node  *Node
	err   error
}

// Lazy declares a shared node. Hand it to Main, which stops it.
func Lazy(o Options) *LazyNode {
	l := &LazyNode{opts: o, asked: make(chan struct{}, 1)}
	l.asked <- struct{}{}
	return l
}

// Get returns the node, started and ready. When a test that got it fails, the
// end of the server's log is shown with it.
func (l *LazyNode) Get(t testing.TB) *Node {
	t.Helper()
	<-l.asked
	if l.node == nil && l.err == nil {
		if l.node, l.err = New(context.Background(), l.opts); l.err == nil {
			l.err = l.node.Launch()
		}
		if l.err == nil && !l.opts.NoWait {
			l.err = l.node.awaitReady(readyTimeout)
		}
	}
	n, err := l.node, l.err
	l.asked <- struct{}{}
	if n != nil {
		t.Cleanup(func() { n.showLog(t) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (l *LazyNode) close() error {
	<-l.asked
	if l.node == nil {
		return nil
	}
	return l.node.Close()
}
