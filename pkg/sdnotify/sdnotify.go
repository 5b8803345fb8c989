// Package sdnotify tells systemd how Knarr is doing, and keeps sockets with it
// over a restart.
//
// Parts that run in this process (API server, kubelet) would tell systemd on
// their own that all is ready, too early. FromEnv and ListenFDs therefore take
// the variables out of the environment; call both before anything else starts.
package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors the kernel takes with one message.
const maxFDs = 253

// firstFD is where systemd puts the first descriptor that it hands over.
const firstFD = 3

// Notifier speaks to systemd. A nil Notifier, as outside of systemd, does
// nothing; so callers need not ask.
type Notifier struct {
	socket string
	// watchdog is within what time systemd wants to hear from us; 0: never.
	watchdog time.Duration
}

// FromEnv returns the notifier that the environment describes, nil if there is
// none, and removes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from it.
func FromEnv() *Notifier {
	socket := take("NOTIFY_SOCKET")
	usec, _ := strconv.ParseInt(take("WATCHDOG_USEC"), 10, 64)
	pid := take("WATCHDOG_PID")
	if socket == "" {
		return nil
	}
	n := &Notifier{socket: socket}
	// The variables may be meant for a parent that passed them on.
	if usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

func take(name string) string {
	value := os.Getenv(name)
	os.Unsetenv(name)
	return value
}

// Ready tells that the start is complete.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Stopping tells that the stop has begun.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status gives systemctl status a line to show.
func (n *Notifier) Status(text string) error {
	return n.send("STATUS=" + strings.ReplaceAll(text, "\n", " "))
}

// Watchdog is within what time systemd wants a sign of life; 0 if it wants none.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// RunWatchdog gives signs of life at twice the rate that systemd asks for,
// while healthy returns nil, until ctx ends. An unhealthy process stays silent,
// so that systemd restarts it; so does one whose healthy hangs. It returns at
// once if systemd wants no signs.
func (n *Notifier) RunWatchdog(ctx context.Context, healthy func() error) error {
	if n.Watchdog() == 0 {
		return nil
	}
	tick := time.NewTicker(n.watchdog / 2)
	defer tick.Stop()
	well := true
	for {
		err := healthy()
		if err == nil {
			err = n.send("WATCHDOG=1")
		}
		if err != nil && well {
			slog.Error("no sign of life for systemd, which restarts this service if it lasts", "after", n.watchdog, "error", err)
		}
		well = err == nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// StoreFDs gives systemd copies of files, which the service's next process
// gets from ListenFDs under the same name. The unit must have
// FileDescriptorStoreMax. Names have no colon and at most 255 printable
// characters. Call Barrier before the process ends.
func (n *Notifier) StoreFDs(name string, files ...*os.File) error {
	if len(files) == 0 {
		return nil
	}
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == ':' || r == 0x7f }) {
		return fmt.Errorf("store descriptors with systemd: %q can't name them: use at most 255 printable characters without a colon", name)
	}
	for chunk := range slices.Chunk(files, maxFDs) {
		// An error that a UDP socket has pending must not make systemd drop it.
		if err := n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, chunk...); err != nil {
			return fmt.Errorf("store descriptors %s with systemd: %w", name, err)
		}
	}
	return nil
}

// RemoveFDs has systemd close what is stored under name.
func (n *Notifier) RemoveFDs(name string) error {
	return n.send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// Barrier returns when systemd has worked off all that was sent, or with an
// error when ctx ends.
func (n *Notifier) Barrier(ctx context.Context) error {
	if n == nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	defer r.Close()
	err = n.send("BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	// The pipe ends when systemd closes the end that it was sent.
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for systemd: %w", errors.Join(ctx.Err(), err))
	}
	return nil
}

// send opens a socket of its own each time: systemd may have replaced its end.
func (n *Notifier) send(state string, files ...*os.File) error {
	if n == nil {
		return nil
	}
	var rights []byte
	if len(files) > 0 {
		fds, err := duplicate(files)
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		if err != nil {
			return fmt.Errorf("pass descriptors to systemd: %w", err)
		}
		rights = unix.UnixRights(fds...)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket to systemd: %w", err)
	}
	defer unix.Close(socket)
	if err := unix.Sendmsg(socket, []byte(state), rights, &unix.SockaddrUnix{Name: n.socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell systemd %q on %s: %w", state, n.socket, err)
	}
	return nil
}

// duplicate copies descriptors, the good ones also when it fails. File.Fd would
// make the files blocking, and with them the sockets that they are copies of.
func duplicate(files []*os.File) ([]int, error) {
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return fds, err
		}
		var fd int
		var dupErr error
		err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(err, dupErr); err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// ListenFDs returns the descriptors that systemd handed to this process, by
// name: stored ones and those of socket units. It removes LISTEN_PID,
// LISTEN_FDS and LISTEN_FDNAMES from the environment; a second call returns
// none. The files are not inherited by children.
func ListenFDs() map[string][]*os.File {
	pid, count, list := take("LISTEN_PID"), take("LISTEN_FDS"), take("LISTEN_FDNAMES")
	n, err := strconv.Atoi(count)
	if err != nil || n <= 0 || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	names := strings.Split(list, ":")
	files := map[string][]*os.File{}
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		unix.CloseOnExec(firstFD + i)
		files[name] = append(files[name], os.NewFile(uintptr(firstFD+i), name))
	}
	return files
}
