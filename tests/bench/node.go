package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// A subject is a Kubernetes to be measured.
type subject interface {
	name() string
	version(ctx context.Context) (string, error)
	// executables are all files that make it up.
	executables() ([]string, error)
	// binds are what a host must show of the machine.
	binds() []lab.Bind
	// prepare does in a fresh host what may be done before the clock starts.
	prepare(ctx context.Context, h *lab.Host) error
	// command starts all of it, in the foreground. SIGTERM ends it, but not
	// its pods.
	command(ctx context.Context, h *lab.Host) *lab.Cmd
	// supervised tells that the process of command is only a supervisor, which
	// does not count as part of the subject.
	supervised() bool
	// kubeconfig is the administrator's file in the host.
	kubeconfig() string
	// lastWords are the lines of a log that tell best why it ended.
	lastWords(log []string) []string
}

// A node is a host that runs, or ran, a subject.
type node struct {
	subject subject
	lab     *lab.Lab
	host    *lab.Host
	disk    *disk
	log     *os.File

	cmd     *lab.Cmd
	started time.Time
	logFrom int64         // where in log this start's lines begin
	ended   chan struct{} // closed when cmd has ended
	err     error         // why; valid then
}

const (
	// phaseTime is how long any one thing that is waited for may take.
	phaseTime = time.Minute
	stopTime  = 40 * time.Second
	// lastLines is how much of a log an error shows, and lastLine how much of
	// each line, in bytes.
	lastLines = 8
	lastLine  = 400
)

// newNode makes a host on the disk, prepared but with nothing running.
func newNode(ctx context.Context, s subject, d *disk, logFile string) (_ *node, err error) {
	n := &node{subject: s, disk: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.log, err = os.Create(logFile); err != nil {
		return nil, err
	}
	// Its programs are read from memory in every run, not only from the second on.
	files, err := s.executables()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := readAll(f); err != nil {
			return nil, err
		}
	}
	if n.lab, err = lab.New(ctx, lab.Config{Dir: d.dir}); err != nil {
		return nil, err
	}
	if n.host, err = n.lab.AddHost(ctx, lab.HostConfig{Name: "node1", Binds: s.binds()}); err != nil {
		return nil, err
	}
	return n, s.prepare(ctx, n.host)
}

func readAll(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// start executes the subject and sets the clock to zero.
func (n *node) start(ctx context.Context) (err error) {
	if n.logFrom, err = n.log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	n.cmd = n.subject.command(ctx, n.host)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		return err
	}
	n.started = time.Now()
	ended := make(chan struct{})
	n.ended = ended
	go func() {
		n.err = n.cmd.Wait()
		close(ended)
	}()
	return nil
}

// stop ends the subject as its supervisor would. Pods go on.
func (n *node) stop() error {
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return n.withLog(fmt.Errorf("stop %s: %w", n.subject.name(), err))
	}
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		return n.withLog(fmt.Errorf("stop %s: it still runs %s after SIGTERM", n.subject.name(), stopTime))
	}
	if exit := (*exec.ExitError)(nil); n.err != nil && !errors.As(n.err, &exit) {
		return fmt.Errorf("stop %s: %w", n.subject.name(), n.err)
	}
	return nil
}

// while runs fn with a context that ends with the subject and after phaseTime,
// and then says so.
func (n *node) while(ctx context.Context, what string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, phaseTime, fmt.Errorf("gave up after %s", phaseTime))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	done := make(chan struct{})
	defer close(done)
	ended := n.ended
	go func() {
		select {
		case <-ended:
			end(errEnded)
		case <-done:
		}
	}()
	err := fn(ctx)
	if err == nil {
		return nil
	}
	what += " of " + n.subject.name()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errEnded):
		// What fn met is only what came of it.
		return n.withLog(fmt.Errorf("%s: %w", what, n.end()))
	case cause != nil:
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return n.withLog(fmt.Errorf("%s: %w", what, err))
}

var errEnded = errors.New("it ended by itself")

// end tells how the subject ended, which it has.
func (n *node) end() error {
	if n.err == nil {
		return fmt.Errorf("%w: exit status 0", errEnded)
	}
	return fmt.Errorf("%w: %w", errEnded, n.err)
}

// withLog adds the subject's last words to an error.
func (n *node) withLog(err error) error {
	text, rerr := os.ReadFile(n.log.Name())
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	lines := strings.Split(strings.TrimSpace(string(text[min(n.logFrom, int64(len(text))):])), "\n")
	lines = n.subject.lastWords(lines)
	for i, l := range lines {
		lines[i] = "\n    " + l[:min(len(l), lastLine)]
	}
	return fmt.Errorf("%w (log: %s)%s", err, n.log.Name(), strings.Join(lines, ""))
}

// last are the last lines of a log.
func last(log []string) []string { return log[max(0, len(log)-lastLines):] }

// rest leaves the subject alone for a while, if it lasts.
func (n *node) rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-n.ended:
		return n.withLog(fmt.Errorf("rest of %s: %w", n.subject.name(), n.end()))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// config is how the administrator reaches the API from this program.
func (n *node) config() (*rest.Config, error) {
	data, err := os.ReadFile(n.host.Path(n.subject.kubeconfig()))
	if err != nil {
		return nil, err
	}
	c, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		return nil, fmt.Errorf("read administrator's kubeconfig: %w", err)
	}
	c.Dial = n.host.DialContext
	c.QPS = -1 // no limit
	c.ContentType = "application/vnd.kubernetes.protobuf"
	return c, nil
}

// client is the administrator's, with a connection of its own, which hangUp
// closes: an open one is asked for signs of life and so is not idle.
func (n *node) client() (client *kubernetes.Clientset, hangUp func(), err error) {
	c, err := n.config()
	if err != nil {
		return nil, nil, err
	}
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, nil, fmt.Errorf("make client of the administrator: %w", err)
	}
	client, err = kubernetes.NewForConfigAndClient(c, h)
	if err != nil {
		return nil, nil, fmt.Errorf("make client of the administrator: %w", err)
	}
	return client, h.CloseIdleConnections, nil
}

func (n *node) close() error {
	var errs []error
	if n.lab != nil {
		errs = append(errs, n.lab.Close())
	}
	if n.disk != nil {
		errs = append(errs, n.disk.close())
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	return errors.Join(errs...)
}

// writeFile writes a file into a host, and the folders above it.
func writeFile(h *lab.Host, name string, data []byte, mode os.FileMode) error {
	path := h.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s in host: %w", name, err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("write %s in host: %w", name, err)
	}
	return nil
}
