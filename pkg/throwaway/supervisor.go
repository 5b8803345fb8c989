package throwaway

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// notifySocket is where the server finds its supervisor, in the host.
const notifySocket = "/run/knarr-notify"

// supervisor hears what a server tells systemd, and keeps what it wants kept.
type supervisor struct {
	conn *net.UnixConn

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed at the next line
	kept  []keptFile
}

// A keptFile is a plain descriptor: as a file of Go's it would have this process
// wake up for every packet that the server reads from it.
type keptFile struct {
	fd   int
	name string // as the server named it
}

func listenNotify(path string) (*supervisor, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen as systemd does: %w", err)
	}
	s := &supervisor{conn: conn, more: make(chan struct{})}
	go s.listen()
	return s, nil
}

// listen ends when the socket is closed.
func (s *supervisor) listen() {
	buf, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		size, more, _, _, err := s.conn.ReadMsgUnix(buf, rights)
		if err != nil {
			return
		}
		lines := strings.Split(strings.TrimSpace(string(buf[:size])), "\n")
		files := received(rights[:more], lines)
		s.mu.Lock()
		s.lines = append(s.lines, lines...)
		s.kept = append(s.kept, files...)
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
	}
}

// received are the files that came with a message.
func received(rights []byte, lines []string) []keptFile {
	name := ""
	for _, l := range lines {
		if n, ok := strings.CutPrefix(l, "FDNAME="); ok {
			name = n
		}
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	var files []keptFile
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // something else than files
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, keptFile{fd, name})
		}
	}
	return files
}

// takeKept gives up what is kept. The caller closes it.
func (s *supervisor) takeKept() []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var files []*os.File
	for _, f := range s.kept {
		files = append(files, os.NewFile(uintptr(f.fd), f.name))
	}
	s.kept = nil
	return files
}

// count tells how often a line came, and gives a channel that is closed by the
// next line of any kind.
func (s *supervisor) count(line string) (int, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(s.lines), func(l string) bool { return l != line })
	return len(others), s.more
}

func (s *supervisor) close() {
	s.conn.Close()
	for _, f := range s.takeKept() {
		f.Close()
	}
}
