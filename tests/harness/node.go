package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/throwaway"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

const (
	// readyTimeout is for machines under load; a node takes two seconds.
	readyTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
	// logTail is how many lines of the server's log a failed test shows.
	logTail = 80
)

// Options say what a node starts with.
type Options struct {
	// Args follow `knarr server`.
	Args []string
	// Env is added to the server's environment: NAME=VALUE.
	Env []string
	// Images are archives put where the server imports them from. Default: the
	// test image.
	Images []string
	// Files are written in the host before the server starts: path to content.
	Files map[string]string
	// Exe is where in the host the server runs from a copy of its own, which a
	// test may replace. Default: it runs the one under test itself.
	Exe string
	// Join makes the node an agent of that one's cluster, on its network, under the
	// name given. Args follow `knarr agent --server …`.
	Join *Node
	Name string
	// NoWait leaves it to the test to wait until the node is ready.
	NoWait bool
}

// A Node is a lab host and the server in it. Its Client works whenever a server
// does, across restarts and reboots.
type Node struct {
	Host *throwaway.Host
	// Exe, Args and Env are what the next Launch runs.
	Exe  string
	Args []string
	Env  []string

	// KeepSockets has the next Launch hand over the sockets that the server
	// before it wanted kept, as systemd does in a restart.
	KeepSockets bool

	// Client and REST are set once the node has been ready.
	Client kubernetes.Interface
	REST   *rest.Config

	lab       *lab.Lab
	joins     *Node // whose cluster an agent joins
	cgroups   []string
	logPath   string
	authority *authority // of registries that the host trusts

	mu     sync.Mutex
	server *throwaway.Server
}

// Start makes a node for one test and waits until it is ready. It is stopped
// when the test ends, and nothing may be left of it then.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	n := Prepare(t, o)
	if o.NoWait {
		if err := n.Launch(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	n.Resume(t)
	return n
}

// Prepare makes the host of a node for one test, without a server.
func Prepare(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.showLog(t)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// New makes the host, without a server. The caller closes it.
func New(ctx context.Context, o Options) (*Node, error) {
	p, err := findParts()
	if err != nil {
		return nil, err
	}
	images := o.Images
	if images == nil {
		images = []string{p.testImage}
	}
	n := &Node{Args: o.Args, Env: o.Env}
	if o.Join != nil {
		n.joins = o.Join
		n.Args = append([]string{"--server", o.Join.URL()}, o.Args...)
		n.Host, err = throwaway.AddHost(ctx, o.Join.lab, o.Name, p.exe, images)
	} else {
		n.lab, n.Host, err = throwaway.NewHost(ctx, "", p.exe, images)
	}
	if err != nil {
		return nil, err
	}
	n.Exe, n.cgroups = n.Host.Exe, n.Host.CgroupDirs()
	if o.Exe != "" {
		if err := n.CopyExe(o.Exe, nil); err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.Exe = o.Exe
	}
	if n.authority, err = newAuthority(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	// Programs read a host's authorities but once.
	if err := n.write(trustedFile, string(n.authority.pem)); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	for path, content := range o.Files {
		if err := n.write(path, content); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	log, err := os.CreateTemp("", "knarr-server-*.log")
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.logPath = log.Name()
	return n, log.Close()
}

// Connect makes the clients as soon as they can be, which is long before the
// node is ready.
func (n *Node) Connect(t testing.TB) {
	t.Helper()
	n.WaitFor(t, "the kubeconfig", func(context.Context) (bool, error) {
		err := n.connect()
		return err == nil, err
	})
}

// URL is where other hosts of the lab reach the API server.
func (n *Node) URL() string { return fmt.Sprintf("https://%s:6443", n.Host.Addr()) }

// Token is the server's own, by which agents join.
func (n *Node) Token(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(n.Host.Path("/var/lib/knarr/server/node-token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// connect makes the clients, from the kubeconfig that the server wrote.
func (n *Node) connect() error {
	if n.Client != nil {
		return nil // a restart keeps the certificates
	}
	if n.joins != nil {
		n.REST, n.Client = n.joins.REST, n.joins.Client
		return nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", n.Host.Kubeconfig())
	if err != nil {
		return fmt.Errorf("connect to node: %w", err)
	}
	cfg.Dial = n.Host.DialContext
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to node: %w", err)
	}
	n.REST, n.Client = cfg, client
	return nil
}

// Status is what the server says about its components.
func (n *Node) Status(t testing.TB) *status.Report {
	t.Helper()
	r, err := n.StatusErr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// StatusErr is Status for a server that may not listen yet.
func (n *Node) StatusErr(ctx context.Context) (*status.Report, error) {
	return status.Fetch(ctx, n.statusSocket())
}

// Fail has a component of the server fail.
func (n *Node) Fail(t testing.TB, component string) {
	t.Helper()
	n.Ask(t, http.MethodPost, cluster.FailPath+component)
}

// Ask asks the server's status socket for something else than its status.
func (n *Node) Ask(t testing.TB, method, path string) []byte {
	t.Helper()
	body, err := status.Ask(t.Context(), n.statusSocket(), method, path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (n *Node) statusSocket() string { return n.Host.Path("/run/knarr/status.sock") }

// Log is all that the servers have written so far.
func (n *Node) Log(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(n.logPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// unready tells which components are not ready, and why.
func (n *Node) unready() string {
	out, err := n.ExecErr(context.Background(), n.Exe, "status")
	if err != nil {
		return err.Error()
	}
	return out
}

func (n *Node) tail() string {
	text, err := os.ReadFile(n.logPath)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(bytes.TrimSpace(text)), "\n")
	return "the end of the server's log:\n" + strings.Join(lines[max(0, len(lines)-logTail):], "")
}

func (n *Node) showLog(t testing.TB) {
	if t.Failed() {
		t.Log(n.tail())
	}
}

// Close stops the server, removes the host and tells what is left of it.
func (n *Node) Close() error {
	var errs []error
	if p := n.current(); p != nil {
		if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		select {
		case <-p.Done():
		case <-time.After(stopTimeout):
			errs = append(errs, fmt.Errorf("the server still ran %s after SIGTERM\n%s", stopTimeout, n.tail()))
		}
		p.Close()
	}
	left := n.cgroups
	if n.joins != nil {
		errs = append(errs, n.Host.Close())
	} else {
		errs = append(errs, n.lab.Close())
		left = append(left, n.lab.Dir())
	}
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s is left of the host", path))
		}
	}
	if n.logPath != "" {
		errs = append(errs, os.Remove(n.logPath))
	}
	return errors.Join(errs...)
}

// CopyExe makes a copy of the server's executable in the host, in one step as an
// update does. Appended bytes make it another build.
func (n *Node) CopyExe(to string, appended []byte) error {
	build, err := os.ReadFile(n.Host.Path(n.Exe))
	if err != nil {
		return fmt.Errorf("copy executable: %w", err)
	}
	to = n.Host.Path(to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", append(build, appended...), 0o755); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// Write writes a file in the host, in one step, as editors do.
func (n *Node) Write(t testing.TB, path, content string) {
	t.Helper()
	if err := n.write(path, content); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) write(path, content string) error {
	path = n.Host.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	mode := fs.FileMode(0o644)
	if strings.HasPrefix(content, "#!") { // a script
		mode = 0o755
	}
	if err := os.WriteFile(tmp, []byte(content), mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Exec runs a program in the host and returns what it wrote to stdout.
func (n *Node) Exec(t testing.TB, command ...string) string {
	t.Helper()
	out, err := n.ExecErr(t.Context(), command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ExecErr is Exec for programs that may fail; the error has what was written to
// stderr, and is an [exec.ExitError] when the program ran.
func (n *Node) ExecErr(ctx context.Context, command ...string) (string, error) {
	out, err := n.Host.Command(ctx, command[0], command[1:]...).Output()
	if err == nil {
		return string(out), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, exit.Stderr)
	}
	return string(out), err
}
