package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Server serves reports on a unix socket. It may run in a group like any
// component; one that runs beside the group also tells how the group stops.
type Server struct {
	// Socket is the path listened on. Its folder is made when missing, mode
	// 0700; the socket itself is open to its owner only.
	Socket string
	// Report makes the report; it is called once for each request.
	Report func() Report
	// Routes, if not nil, adds what else is answered.
	Routes func(*http.ServeMux)
	// Log may be nil.
	Log *slog.Logger
}

var _ component.Component = (*Server)(nil)

// Name is status.
func (s *Server) Name() string { return "status" }

// Needs is nothing.
func (s *Server) Needs() []string { return nil }

// Run serves until ctx ends and then removes the socket. It closes ready once
// the socket accepts connections. A socket that a killed process left behind is
// replaced; one that another process serves is an error.
func (s *Server) Run(ctx context.Context, ready chan<- struct{}) error {
	l, err := listen(s.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	close(ready)

	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, s.serve)
	if s.Routes != nil {
		s.Routes(mux)
	}
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status on %s: %w", s.Socket, err)
	}
	return nil
}

func (s *Server) serve(w http.ResponseWriter, _ *http.Request) {
	body, err := json.Marshal(s.Report())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(body, '\n')) // a client that went away is nobody's trouble
}

// listener removes the socket's path when it closes, if it is still its own.
type listener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// listen makes the socket in a private folder and moves it into place: nobody
// can connect before its mode is set, and a stale one is replaced in one step.
func listen(path string) (_ net.Listener, err error) {
	if err := checkFree(path); err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the status socket: %w", err)
	}
	private, err := os.MkdirTemp(folder, ".s")
	if err != nil {
		return nil, fmt.Errorf("make the status socket: %w", err)
	}
	defer os.RemoveAll(private)

	made := filepath.Join(private, "s")
	if err := checkLength(made); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the status socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := os.Chmod(made, 0o600); err != nil {
		return nil, fmt.Errorf("close the status socket to others: %w", err)
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, fmt.Errorf("make the status socket: %w", err)
	}
	if err := os.Rename(made, path); err != nil {
		return nil, fmt.Errorf("move the status socket into place: %w", err)
	}
	return &listener{l, path, info}, nil
}

// checkFree returns an error when path is not a socket, or is one that a
// process listens on.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the status socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the place of the status socket and is not a socket: move it away", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("another knarr serves the status socket %s: stop it first, or give this one another data and run folder", path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("find out who serves the status socket %s: %w", path, err)
}

func checkLength(path string) error {
	if room := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > room {
		return fmt.Errorf("the path of the status socket is too long for the kernel (%s: %d bytes, at most %d): use a shorter folder", path, len(path), room)
	}
	return nil
}
