package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/throwaway"
)

// Launch starts the server and does not wait for it to be ready.
func (n *Node) Launch() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var kept []*os.File
	if n.server != nil {
		select {
		case <-n.server.Done():
		default:
			return errors.New("launch server: the one before runs")
		}
		if n.KeepSockets {
			kept = n.server.TakeSockets()
		}
		n.server.Close()
	}
	defer func() {
		for _, f := range kept {
			f.Close()
		}
	}()
	log, err := os.OpenFile(n.logPath, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	command := "server"
	if n.joins != nil {
		command = "agent"
	}
	started, err := n.Host.Start(throwaway.ServerOptions{Exe: n.Exe, Command: command, Args: n.Args, Env: n.Env, Output: log, Sockets: kept})
	if err == nil {
		n.server = started
	}
	return err
}

// current is the server launched last.
func (n *Node) current() *throwaway.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
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
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := n.current().Await(ctx, message, times)
	if ctx.Err() != nil {
		return fmt.Errorf("%w (waited for %s)\n%s%s", err, limit, n.unready(), n.tail())
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.tail())
	}
	return nil
}

// Said tells whether the server launched last has sent systemd that line.
func (n *Node) Said(message string) bool { return n.current().Said(message) > 0 }

// Reload sends SIGHUP, by which the server replaces itself in place, and waits
// until it is ready again.
func (n *Node) Reload(t testing.TB) {
	t.Helper()
	before := n.current().Said("READY=1")
	n.Signal(t, syscall.SIGHUP)
	if err := n.awaitMessage("READY=1", before+1, readyTimeout); err != nil {
		t.Fatal(err)
	}
}

// Signal sends the server a signal.
func (n *Node) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := n.current().Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Ended tells whether the server launched last has ended.
func (n *Node) Ended() bool {
	select {
	case <-n.current().Done():
		return true
	default:
		return false
	}
}

// Wait waits until the server has ended, and returns how.
func (n *Node) Wait(t testing.TB) error {
	t.Helper()
	p := n.current()
	select {
	case <-p.Done():
		return p.Wait()
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
	if p := n.current(); p != nil {
		_ = p.Wait() // it lost its power
	}
}
