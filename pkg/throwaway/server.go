package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// ServerOptions say how a server is run.
type ServerOptions struct {
	// Exe is the executable as a path in the host. Default: that of the host.
	Exe string
	// Command is server (default) or agent.
	Command string
	// Args follow it.
	Args []string
	// Env is added to the environment: NAME=VALUE.
	Env []string
	// Output gets what the server writes, both its streams. Default: nothing.
	Output io.Writer
	// Sockets are handed over as systemd hands over those in its store. They stay
	// the caller's.
	Sockets []*os.File
}

// Server is one run of `knarr server` in a host. It has a supervisor as it would
// have systemd: what it says by sd_notify is heard, and what it wants kept is.
type Server struct {
	cmd    *lab.Cmd
	notify *supervisor
	done   chan struct{}
	err    error // of the end; read it after done
}

// Start starts a server, of which a host has one at a time, and does not wait
// for it to be ready. The caller closes it once it has ended.
func (h *Host) Start(o ServerOptions) (*Server, error) {
	notify, err := listenNotify(h.Path(notifySocket))
	if err != nil {
		return nil, err
	}
	s := &Server{cmd: h.server(o), notify: notify, done: make(chan struct{})}
	if err := s.cmd.Start(); err != nil {
		notify.close()
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// server is a command with the environment that systemd gives. It has no
// context: only its supervisor ends a server.
func (h *Host) server(o ServerOptions) *lab.Cmd {
	if o.Exe == "" {
		o.Exe = h.Exe
	}
	if o.Command == "" {
		o.Command = "server"
	}
	args := append([]string{o.Exe, o.Command}, o.Args...)
	env := append([]string{"NOTIFY_SOCKET=" + notifySocket}, o.Env...)
	if len(o.Sockets) > 0 {
		var names []string
		for _, f := range o.Sockets {
			names = append(names, f.Name())
		}
		env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(o.Sockets)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		// Only the process itself knows its number in the host.
		args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args...)
	}
	cmd := h.Command(context.Background(), args[0], args[1:]...)
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = append(cmd.ExtraFiles, o.Sockets...)
	cmd.Stdout, cmd.Stderr = o.Output, o.Output
	return cmd
}

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait waits until the server has ended, and returns how.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// Signal sends the server a signal. One that has ended gets none, and the error
// is [os.ErrProcessDone].
func (s *Server) Signal(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send the server %s: %w", sig, err)
	}
	return nil
}

// Said is how often the server has sent its supervisor that line.
func (s *Server) Said(line string) int {
	count, _ := s.notify.count(line)
	return count
}

// Await waits until the server has sent its supervisor a line so many times,
// READY=1 for instance. It fails if the server or ctx ends first.
func (s *Server) Await(ctx context.Context, line string, times int) error {
	for {
		count, more := s.notify.count(line)
		if count >= times {
			return nil
		}
		select {
		case <-more:
		case <-s.done:
			return fmt.Errorf("the server ended before it said %s: %w", line, s.ended())
		case <-ctx.Done():
			return fmt.Errorf("the server has not said %s: %w", line, context.Cause(ctx))
		}
	}
}

// ended is why the server did; it has an error for each way.
func (s *Server) ended() error {
	if s.err == nil {
		return errors.New("exit status 0")
	}
	return s.err
}

// TakeSockets gives those that the server wanted kept, for the next to be handed
// over. The caller closes them.
func (s *Server) TakeSockets() []*os.File { return s.notify.takeKept() }

// Close stops listening to the server and lets go of what it wanted kept.
func (s *Server) Close() { s.notify.close() }
