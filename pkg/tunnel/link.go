package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/knarr-dev/knarr/pkg/dial"
)

// link is one end of a tunnel.
type link struct {
	session *yamux.Session
	wire    *wire
	buffers sync.Pool // of *[maxRecord]byte
	watched sync.WaitGroup

	mu    sync.Mutex
	cause error // why this end closed it; nil when it did not
}

// newLink takes c over. What was already read of it is in r, before the rest. The
// opener is the server's end, the only one that may open streams.
func newLink(c net.Conn, r io.Reader, opener bool, keepAlive time.Duration, log *slog.Logger) (*link, error) {
	l := &link{wire: &wire{Conn: c, r: r, born: time.Now()}}
	l.buffers.New = func() any { return new([maxRecord]byte) }
	config := yamux.DefaultConfig()
	// Both times are safety valves behind watch, which knows better: a write
	// queues behind all others on a slow line.
	config.ConnectionWriteTimeout = time.Minute
	config.StreamOpenTimeout = 75 * time.Second
	config.EnableKeepAlive = false
	config.StreamCloseTimeout = time.Minute
	// 256 KiB, the smallest that yamux takes, is what a stream may keep in
	// memory on each side while its reader is slow.
	config.MaxStreamWindowSize = 256 << 10
	config.LogOutput = nil
	config.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	start := yamux.Server
	if opener {
		start = yamux.Client
	}
	session, err := start(l.wire, config)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("start the multiplexer of a tunnel: %w", err)
	}
	l.session = session
	l.watched.Go(func() { l.watch(keepAlive) })
	return l, nil
}

// fail closes the link. Whatever is open in it fails with the cause at once.
func (l *link) fail(cause error) {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = cause
	}
	l.mu.Unlock()
	l.session.Close()
}

// err is why the link ended.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return fmt.Errorf("%w: %w", ErrCut, l.cause)
	}
	return fmt.Errorf("%w: the connection was lost", ErrCut)
}

// watch ends the link when its peer gives no sign of life.
func (l *link) watch(keepAlive time.Duration) {
	timer := time.NewTimer(keepAlive)
	defer timer.Stop()
	wait := func(d time.Duration) (goesOn bool) {
		timer.Reset(d)
		select {
		case <-timer.C:
			return true
		case <-l.session.CloseChan():
			return false
		}
	}
	for {
		silent := time.Since(l.wire.lastHeard())
		if silent < keepAlive {
			if !wait(keepAlive - silent) {
				return
			}
			continue
		}
		asked := time.Now()
		// The answer is heard as any other byte is, so that nothing waits for
		// the Ping itself.
		l.watched.Go(func() { _, _ = l.session.Ping() })
		if !wait(min(answerTimeout, keepAlive)) {
			return
		}
		if heard := l.wire.lastHeard(); heard.Before(asked) {
			l.fail(fmt.Errorf("the peer has been silent for %s", time.Since(heard).Round(time.Second)))
			return
		}
	}
}

// open connects to a target through the link.
func (l *link) open(ctx context.Context, target netip.AddrPort) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	type result struct {
		c   *conn
		err error
	}
	results := make(chan result)
	// yamux opens streams without a context, which may take as long as a write.
	go func() {
		c, err := l.ask(ctx, target)
		select {
		case results <- result{c, err}:
		case <-ctx.Done():
			if err == nil {
				c.Close()
			}
		}
	}()
	select {
	case r := <-results:
		return r.c, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *link) ask(ctx context.Context, target netip.AddrPort) (*conn, error) {
	stream, err := l.session.OpenStream()
	if err != nil {
		if l.session.IsClosed() {
			err = l.err()
		}
		return nil, err
	}
	c := newConn(l, stream, net.TCPAddrFromAddrPort(target))
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err = c.say(kindTarget, target.String())
	if err == nil {
		err = c.answer()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// answer reads whether the agent reached the target.
func (c *conn) answer() error {
	c.reading.Lock()
	defer c.reading.Unlock()
	k, n, err := c.next()
	if err != nil {
		return err
	}
	text, err := c.text(n)
	switch {
	case err != nil:
		return err
	case k == kindOpened:
		return nil
	case k == kindRefused:
		return fmt.Errorf("%w: %s", ErrRefused, text)
	case k == kindFailed:
		return errors.New(text)
	default:
		return errProtocol
	}
}

// target reads what the server wants to reach.
func (c *conn) target() (netip.AddrPort, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	k, n, err := c.next()
	if err != nil {
		return netip.AddrPort{}, err
	}
	if k != kindTarget {
		return netip.AddrPort{}, errProtocol
	}
	text, err := c.text(n)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil || addr.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q is no target: %w", text, errProtocol)
	}
	return addr, nil
}

// wire is the connection below a link. It knows when anything was last heard.
type wire struct {
	net.Conn
	r     io.Reader
	born  time.Time
	heard atomic.Int64 // nanoseconds after born
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.heard.Store(int64(time.Since(w.born)))
	}
	return n, err
}

func (w *wire) lastHeard() time.Time { return w.born.Add(time.Duration(w.heard.Load())) }

// Close ends the connection without a farewell: TLS would wait for up to 5 s to
// send one, and meanwhile all that is open in the tunnel would hang.
func (w *wire) Close() error {
	dial.Inner(w.Conn).Close()
	w.Conn.Close()
	return nil
}
