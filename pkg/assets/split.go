package assets

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"
)

// split sorts the connections of one port: gRPC begins with HTTP/2's preface
// (RFC 9113, section 3.4), and what does not is HTTP/1.
type split struct {
	lis        net.Listener
	grpc, http *half
	once       sync.Once
	closed     chan struct{}
}

// speakWithin is how long a client may be silent before it is hung up on.
const speakWithin = 30 * time.Second

func newSplit(lis net.Listener) *split {
	s := &split{lis: lis, closed: make(chan struct{})}
	s.grpc, s.http = &half{split: s, conns: make(chan net.Conn)}, &half{split: s, conns: make(chan net.Conn)}
	return s
}

// run accepts until the listener is closed.
func (s *split) run() {
	for {
		c, err := s.lis.Accept()
		if err != nil {
			_ = s.Close()
			return
		}
		go s.sort(c)
	}
}

// sort reads as much of a connection as tells what it is.
func (s *split) sort(c net.Conn) {
	start := make([]byte, len("PRI"))
	_ = c.SetReadDeadline(time.Now().Add(speakWithin))
	if _, err := io.ReadFull(c, start); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := s.http
	if string(start) == "PRI" {
		to = s.grpc
	}
	select {
	case to.conns <- &begun{Conn: c, r: io.MultiReader(bytes.NewReader(start), c)}:
	case <-s.closed:
		_ = c.Close()
	}
}

// Close ends both halves. It may be called twice.
func (s *split) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.lis.Close()
}

// half is a listener of one kind of connections.
type half struct {
	*split
	conns chan net.Conn
}

var _ net.Listener = (*half)(nil)

func (h *half) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, errClosed
	}
}

func (h *half) Addr() net.Addr { return h.lis.Addr() }

// begun is a connection whose first bytes were read.
type begun struct {
	net.Conn
	r io.Reader
}

func (c *begun) Read(p []byte) (int, error) { return c.r.Read(p) }
