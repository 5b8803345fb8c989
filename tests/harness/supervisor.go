package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
)

// notifySocket is where the server finds its supervisor, in the host.
const notifySocket = "/run/harness-notify"

// supervisor hears what a server tells systemd.
type supervisor struct {
	conn *net.UnixConn

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed at the next line
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

// listen ends when the socket is closed. Descriptors that come with a message
// are dropped, as by a unit without a store.
func (s *supervisor) listen() {
	buf := make([]byte, 4096)
	for {
		size, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.lines = append(s.lines, strings.Split(strings.TrimSpace(string(buf[:size])), "\n")...)
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
	}
}

// count tells how often a line came, and gives a channel that is closed by the
// next line of any kind.
func (s *supervisor) count(line string) (int, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(s.lines), func(l string) bool { return l != line })
	return len(others), s.more
}

func (s *supervisor) close() { s.conn.Close() }
