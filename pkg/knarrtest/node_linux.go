package knarrtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/throwaway"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// isChild tells whether this process was started to be a part of a node's host. It
// has then been that.
func isChild() bool { return lab.MaybeInit() }

// NodeOption says how a node differs from the usual one.
type NodeOption func(*nodeOptions)

type nodeOptions struct {
	exe    string
	images []string
	args   []string
}

// Executable is the Knarr to run. Default: $KNARR, or knarr in PATH.
func Executable(path string) NodeOption { return func(o *nodeOptions) { o.exe = path } }

// Images are archives that the node has from its start: Docker's or OCI's; tar,
// tar.gz or tar.zst.
func Images(archives ...string) NodeOption {
	return func(o *nodeOptions) { o.images = append(o.images, archives...) }
}

// ServerArgs are flags of `knarr server`.
func ServerArgs(args ...string) NodeOption {
	return func(o *nodeOptions) { o.args = append(o.args, args...) }
}

// WholeNode is a cluster of one node, in a host of namespaces: its own network,
// processes, mounts and cgroups.
type WholeNode struct {
	host *throwaway.Host
	rest *rest.Config
}

// Node runs a whole node until the test has ended, in a child process: containers
// run there. It needs root, Linux and a Knarr executable, and skips the test with
// the reason where one is missing. TestMain has to be Main.
func Node(t testing.TB, opts ...NodeOption) *WholeNode {
	t.Helper()
	var o nodeOptions
	for _, opt := range opts {
		opt(&o)
	}
	if !hasMain() {
		t.Fatal(noMain)
	}
	exe, err := o.find()
	if err != nil {
		t.Skipf("knarrtest: no node: %v", err)
	}
	n, stop, err := startNode(t.Context(), exe, o)
	if err != nil {
		t.Fatalf("knarrtest: %v", err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("knarrtest: %v", err)
		}
	})
	return n
}

// find returns the executable, or why there can be no node here.
func (o nodeOptions) find() (string, error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", fmt.Errorf("it needs root, and this is user %d", uid)
	}
	exe := o.exe
	if exe == "" {
		exe = os.Getenv("KNARR")
	}
	if exe == "" {
		var err error
		if exe, err = exec.LookPath("knarr"); err != nil {
			return "", errors.New("there is no knarr in PATH; install it, or set $KNARR or the option Executable")
		}
	}
	if _, err := os.Stat(exe); err != nil {
		return "", err
	}
	return exe, nil
}

// startNode returns when the node is ready.
func startNode(ctx context.Context, exe string, o nodeOptions) (_ *WholeNode, stop func() error, err error) {
	l, h, err := throwaway.NewHost(context.WithoutCancel(ctx), "test-"+strconv.Itoa(os.Getpid()), exe, o.images)
	if err != nil {
		return nil, nil, err
	}
	stop = l.Close
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	logFile, err := os.CreateTemp("", "knarrtest-node-*.log")
	if err != nil {
		return nil, nil, fmt.Errorf("create log of the server: %w", err)
	}
	defer logFile.Close()
	s, err := h.Start(throwaway.ServerOptions{Args: o.args, Output: logFile})
	if err != nil {
		return nil, nil, err
	}
	stop = func() error {
		err := s.Signal(syscall.SIGTERM)
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		err = errors.Join(err, s.Wait())
		s.Close()
		if err != nil {
			err = fmt.Errorf("stop node: %w (its log is %s)", err, logFile.Name())
		} else {
			_ = os.Remove(logFile.Name())
		}
		return errors.Join(err, l.Close())
	}
	ready, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := s.Await(ready, "READY=1", 1); err != nil {
		return nil, nil, fmt.Errorf("start node: %w (its log is %s)", err, logFile.Name())
	}
	n := &WholeNode{host: h}
	if n.rest, err = clientcmd.BuildConfigFromFlags("", h.Kubeconfig()); err != nil {
		return nil, nil, fmt.Errorf("read the node's kubeconfig: %w", err)
	}
	n.rest.Dial, n.rest.QPS = h.DialContext, -1
	return n, stop, nil
}

// RESTConfig is an administrator's access. The API server is on the node's own
// network, which it reaches by its Dial.
func (n *WholeNode) RESTConfig() *rest.Config { return rest.CopyConfig(n.rest) }

// Client is an administrator's.
func (n *WholeNode) Client(t testing.TB) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(n.rest)
	if err != nil {
		t.Fatalf("knarrtest: %v", err)
	}
	return client
}

// Command is a command on the node, with the node's knarr, kubectl and files.
func (n *WholeNode) Command(ctx context.Context, name string, args ...string) *lab.Cmd {
	if name == "knarr" {
		name = n.host.Exe
	}
	return n.host.Command(ctx, name, args...)
}

// Path is where a file of the node is on this machine.
func (n *WholeNode) Path(file string) string { return n.host.Path(filepath.Clean(file)) }
