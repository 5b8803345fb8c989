package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// process is one run of the server.
type process struct {
	cmd  *lab.Cmd
	done chan struct{}
	err  error // of the end; read it after done
}

// Launch starts the server and does not wait for it to be ready.
func (n *Node) Launch() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server != nil && !n.server.ended() {
		return errors.New("launch server: the one before runs")
	}
	log, err := os.OpenFile(n.logPath, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	var kept []*os.File
	if n.notify != nil {
		if n.KeepSockets {
			kept = n.notify.takeKept()
		}
		n.notify.close()
	}
	if n.notify, err = listenNotify(n.Host.Path(notifySocket)); err != nil {
		return err
	}
	cmd := n.command(kept)
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	for _, f := range kept {
		f.Close()
	}
	if err != nil {
		return err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	n.server = p
	return nil
}

// command runs the server with the environment that systemd gives.
func (n *Node) command(kept []*os.File) *lab.Cmd {
	args := append([]string{n.Exe, "server"}, n.Args...)
	env := append([]string{"NOTIFY_SOCKET=" + notifySocket}, n.Env...)
	if len(kept) > 0 {
		var names []string
		for _, f := range kept {
			names = append(names, f.Name())
		}
		env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(kept)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		// Only the process itself knows its number in the host.
		args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args...)
	}
	cmd := n.Host.Command(context.Background(), args[0], args[1:]...)
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = kept
	return cmd
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// current is the server launched last, and what it told.
func (n *Node) current() (*process, *supervisor) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server, n.notify
}

// WaitReady waits until the server launched last has said READY=1.
func (n *Node) WaitReady(t testing.TB) {
	t.Helper()
	if err := n.awaitReady(readyTimeout); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) awaitReady(limit time.Duration) error {
	if err := n.awaitMessage("READY=1", 1, limit); err != nil {
		return err
	}
	return n.connect()
}

// awaitMessage waits until the server has sent a message at least so many times.
func (n *Node) awaitMessage(message string, times int, limit time.Duration) error {
	p, s := n.current()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		count, more := s.count(message)
		if count >= times {
			return nil
		}
		select {
		case <-more:
		case <-p.done:
			return fmt.Errorf("the server ended before it sent %s: %v\n%s", message, p.err, n.tail())
		case <-timeout.C:
			return fmt.Errorf("the server has not sent %s within %s\n%s%s", message, limit, n.unready(), n.tail())
		}
	}
}

// Said tells whether the server launched last has sent systemd that line.
func (n *Node) Said(message string) bool {
	_, s := n.current()
	count, _ := s.count(message)
	return count > 0
}

// Reload sends SIGHUP, by which the server replaces itself in place, and waits
// until it is ready again.
func (n *Node) Reload(t testing.TB) {
	t.Helper()
	_, s := n.current()
	before, _ := s.count("READY=1")
	n.Signal(t, syscall.SIGHUP)
	if err := n.awaitMessage("READY=1", before+1, readyTimeout); err != nil {
		t.Fatal(err)
	}
}

// Signal sends the server a signal.
func (n *Node) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	p, _ := n.current()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("send the server %s: %v", sig, err)
	}
}

// Wait waits until the server has ended, and returns how.
func (n *Node) Wait(t testing.TB) error {
	t.Helper()
	p, _ := n.current()
	select {
	case <-p.done:
		return p.err
	case <-time.After(stopTimeout):
		t.Fatalf("the server still runs after %s\n%s", stopTimeout, n.tail())
		return nil
	}
}

// Stop ends the server by SIGTERM, which must succeed. Pods go on.
func (n *Node) Stop(t testing.TB) {
	t.Helper()
	n.Signal(t, syscall.SIGTERM)
	if err := n.Wait(t); err != nil {
		t.Errorf("the server was stopped by SIGTERM: %v\n%s", err, n.tail())
	}
}

// Kill ends the server by SIGKILL. Pods go on.
func (n *Node) Kill(t testing.TB) {
	t.Helper()
	n.Signal(t, syscall.SIGKILL)
	_ = n.Wait(t) // killed, as asked
}

// Restart stops the server and starts it again, with other arguments if some
// are given, and waits until it is ready.
func (n *Node) Restart(t testing.TB, args ...string) {
	t.Helper()
	n.Stop(t)
	if len(args) > 0 {
		n.Args = args
	}
	n.Resume(t)
}

// Resume starts the server and waits until it is ready.
func (n *Node) Resume(t testing.TB) {
	t.Helper()
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
}

// Reboot cuts the host's power and starts it, without a server.
func (n *Node) Reboot(t testing.TB) {
	t.Helper()
	if err := n.Host.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := n.current(); p != nil {
		<-p.done
	}
}
