package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/hashicorp/yamux"
)

// A record is a kind (one byte), a length (two bytes, big endian) and as many
// bytes. Records are there because a yamux stream has one way to end, which
// stands for the end of the data, for a lost peer and for a lost session alike.
type kind byte

const (
	// kindData carries data.
	kindData kind = iota + 1
	// kindEnd: the sender has no more data; it goes on to receive.
	kindEnd
	// kindAbort: the sender's own connection failed; a text says how.
	kindAbort
	// kindTarget is the first of the server's: host:port, the host an address.
	kindTarget
	// kindOpened, kindRefused and kindFailed are the agent's answer: connected,
	// not allowed, not reached; a text says why.
	kindOpened
	kindRefused
	kindFailed
)

const (
	headSize   = 3
	maxPayload = 32 << 10
	maxRecord  = headSize + maxPayload
	maxText    = 1 << 10 // of targets and errors
)

var (
	errProtocol = errors.New("the peer does not keep to the protocol of the tunnel")
	errTorn     = errors.New("a write met its deadline and was not gone on with")
)

// conn is one connection through a tunnel, on either side.
//
// Deadlines are those of net.Conn, with one limit: Read (which tells the peer how
// much it took) and Write may overrun theirs while the tunnel itself does not get
// rid of what is queued, until liveness ends that.
//
// CloseWrite ends one direction. Close ends both: what was written before still
// arrives, what the peer sends from then on is lost.
type conn struct {
	stream        net.Conn // a *yamux.Stream
	link          *link
	local, remote net.Addr

	reading sync.Mutex
	head    [headSize]byte
	got     int // bytes of head
	left    int // bytes of the data record under way
	over    error

	writing sync.Mutex
	due     []byte // bytes of a head that have not gone out
	owed    int    // bytes of payload that its head has promised
	done    error  // what all further writes return

	mu              sync.Mutex // orders what ends the connection and deadlines
	closed          bool
	broken          error // the peer ended both directions like this
	readBy, writeBy time.Time
}

var _ net.Conn = (*conn)(nil)

func newConn(l *link, s net.Conn, remote net.Addr) *conn {
	return &conn{stream: s, link: l, local: l.wire.LocalAddr(), remote: remote}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.late(&c.readBy); err != nil {
		return 0, err
	}
	for c.left == 0 {
		if c.over != nil {
			return 0, c.over
		}
		k, n, err := c.next()
		if err != nil {
			return 0, err
		}
		switch k {
		case kindData:
			c.left = n
		case kindEnd:
			c.over = io.EOF
		case kindAbort:
			text, err := c.text(n)
			if err != nil {
				return 0, err
			}
			c.over = c.breaks(fmt.Errorf("behind the tunnel: %s", text))
		default:
			c.over = c.breaks(errProtocol)
		}
	}
	n, err := c.stream.Read(p[:min(len(p), c.left)])
	c.left -= n
	if n > 0 {
		return n, nil // the next Read finds the error
	}
	return 0, c.fault(err)
}

// next reads the head of a record. A deadline in its middle loses nothing. It
// needs reading.
func (c *conn) next() (kind, int, error) {
	for c.got < headSize {
		n, err := c.stream.Read(c.head[c.got:])
		c.got += n
		if n == 0 {
			return 0, 0, c.fault(err)
		}
	}
	c.got = 0
	k, n := parseHead(c.head)
	return k, n, nil
}

func parseHead(head [headSize]byte) (kind, int) {
	return kind(head[0]), int(binary.BigEndian.Uint16(head[1:]))
}

// text reads what the peer says, n bytes. It comes from another machine and goes
// into logs and errors, so that it is cut to a line. It needs reading.
func (c *conn) text(n int) (string, error) {
	if n > maxText {
		c.over = c.breaks(errProtocol)
		return "", c.over
	}
	text := make([]byte, n)
	for got := 0; got < n; {
		m, err := c.stream.Read(text[got:])
		got += m
		if m == 0 {
			err = c.fault(err)
			c.over = err // the record is torn
			return "", err
		}
	}
	return oneLine(string(text)), nil
}

func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	done := 0
	for done < len(p) {
		n, err := c.data(p[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// data sends what fits into one record, or what is missing of one that a deadline
// tore. It needs writing.
func (c *conn) data(p []byte) (int, error) {
	fresh := c.owed == 0 && len(c.due) == 0
	if fresh {
		c.owed = min(len(p), maxPayload)
		c.due = head(kindData, c.owed)
	}
	p = p[:min(len(p), c.owed)]
	heads := len(c.due)
	n, err := c.put(p)
	if fresh && n == 0 && len(c.due) == heads {
		c.due, c.owed = nil, 0 // none of it went out
	}
	return n, err
}

// say sends a record that is not data.
func (c *conn) say(k kind, text string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.owed > 0 || len(c.due) > 0 {
		return errTorn
	}
	text = text[:min(len(text), maxText)]
	c.due, c.owed = head(k, len(text)), len(text)
	_, err := c.put([]byte(text))
	if err == nil && k == kindEnd || err != nil {
		c.done = syscall.EPIPE // whatever of it went out
	}
	return err
}

// put sends what is due of a head and then payload, and tells how much of the
// payload went out. It needs writing.
func (c *conn) put(payload []byte) (int, error) {
	if c.done != nil {
		return 0, c.done
	}
	if err := c.ended(); err != nil {
		return 0, err
	}
	if err := c.late(&c.writeBy); err != nil {
		return 0, err
	}
	buf := c.link.buffers.Get().(*[maxRecord]byte)
	defer c.link.buffers.Put(buf)
	heads := copy(buf[:], c.due)
	n, err := c.stream.Write(buf[:heads+copy(buf[heads:], payload)])
	c.due = c.due[min(n, heads):]
	sent := max(0, n-heads)
	c.owed -= sent
	if err != nil {
		return sent, c.fault(err)
	}
	return sent, nil
}

func head(k kind, n int) []byte {
	return binary.BigEndian.AppendUint16([]byte{byte(k)}, uint16(n))
}

// CloseWrite tells the peer that no more data comes. It fails when a Write met
// its deadline and was not gone on with.
func (c *conn) CloseWrite() error { return c.say(kindEnd, "") }

func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.stream.SetDeadline(time.Unix(1, 0)) // wakes Read and Write
	c.mu.Unlock()
	// The end queues behind the data of all streams; nobody has to wait for it.
	go c.stream.Close()
	return nil
}

func (c *conn) SetDeadline(t time.Time) error      { return c.setDeadline(&t, &t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&t, nil) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(nil, &t) }

func (c *conn) setDeadline(read, write *time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	var err error
	if read != nil {
		c.readBy, err = *read, c.stream.SetReadDeadline(*read)
	}
	if write != nil && c.broken == nil { // else nothing waits any more
		c.writeBy, err = *write, c.stream.SetWriteDeadline(*write)
	}
	return err
}

// late fails after Close and when the time has come. yamux looks at deadlines
// only where it has to wait.
func (c *conn) late(by *time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case !by.IsZero() && !time.Now().Before(*by):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// breaks notes that the peer has ended both directions, and wakes a Write: the
// peer takes nothing off its hands any more. It returns err.
func (c *conn) breaks(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.broken == nil {
		c.broken = err
		c.stream.SetWriteDeadline(time.Unix(1, 0))
	}
	return err
}

// ended is why nothing can be sent or received any more; nil while it can.
func (c *conn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.broken
}

// fault says what an error of the stream means.
func (c *conn) fault(err error) error {
	if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
		// Whether the record goes out is unknown from here on.
		c.link.fail(errors.New("it did not get rid of data in time"))
	}
	if ended := c.ended(); ended != nil {
		return ended
	}
	switch {
	case c.link.session.IsClosed():
		return c.link.err()
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	default:
		// The peer closed both directions, as Close does.
		return c.breaks(io.ErrUnexpectedEOF)
	}
}
