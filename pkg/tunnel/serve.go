package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/knarr-dev/knarr/pkg/dial"
)

// serve carries what the server opens, until the link ends. It returns why.
func (c *Client) serve(ctx context.Context, l *link) error {
	// What the link carries ends after it, so that the server is told of the cut
	// and of nothing else.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	for {
		stream, err := l.session.AcceptStream()
		if err != nil {
			<-l.session.CloseChan()
			return l.err()
		}
		streams.Go(func() { c.carry(ctx, newConn(l, stream, l.wire.RemoteAddr())) })
	}
}

// carry connects a stream to its target and brings data both ways.
func (c *Client) carry(ctx context.Context, s *conn) {
	defer s.Close()
	target, ok := c.reach(ctx, s)
	if !ok {
		return
	}
	defer target.Close()
	// With the tunnel everything ends, also what waits for the target.
	defer context.AfterFunc(ctx, func() { target.Close() })()
	var back sync.WaitGroup
	var sent atomic.Bool // the target has all that the server sends
	back.Go(func() { fromTarget(s, target, &sent) })
	toTarget(target, s, &sent)
	back.Wait()
}

// reach connects to what the server asks for, and answers it.
func (c *Client) reach(ctx context.Context, s *conn) (net.Conn, bool) {
	ctx, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	s.SetReadDeadline(time.Now().Add(targetTimeout))
	addr, err := s.target()
	if err != nil {
		c.cfg.Log.Debug("the server opened a stream and named no target", "err", err)
		return nil, false
	}
	s.SetReadDeadline(time.Time{})
	if !c.cfg.Allow(addr) {
		c.cfg.Log.Debug("the server may not reach this through the tunnel", "target", addr)
		_ = s.say(kindRefused, fmt.Sprintf("%s is neither this node's kubelet nor one of its pods", addr))
		return nil, false
	}
	target, err := c.cfg.DialTarget(ctx, "tcp", addr.String())
	if err != nil {
		_ = s.say(kindFailed, err.Error())
		return nil, false
	}
	if err := s.say(kindOpened, ""); err != nil {
		target.Close()
		return nil, false
	}
	return target, true
}

// toTarget carries the server's data. When the server has closed the connection,
// or the tunnel has ended, the target is closed and the other direction ends.
func toTarget(target net.Conn, s *conn, sent *atomic.Bool) {
	from := &reader{Conn: s}
	_, err := io.Copy(target, from)
	if err == nil {
		sent.Store(true)
		if half, ok := target.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		}
	}
	if err != nil {
		if from.err == nil {
			_ = s.say(kindAbort, err.Error())
		}
		s.Close()
		target.Close()
	}
}

// fromTarget carries the target's data. When the target's connection breaks, the
// server hears of that and does not take it for the end.
func fromTarget(s *conn, target net.Conn, sent *atomic.Bool) {
	from := &reader{Conn: target}
	_, err := io.Copy(s, from)
	switch {
	case err == nil && !sent.Load() && dial.Gone(target):
		err = syscall.ECONNRESET // toTarget met it
		_ = s.say(kindAbort, err.Error())
	case err == nil:
		err = s.CloseWrite()
	case from.err != nil:
		_ = s.say(kindAbort, from.err.Error())
	}
	if err != nil {
		target.Close()
		s.Close()
	}
}

// reader remembers what ended its reading, to tell it from what ended writing.
type reader struct {
	net.Conn
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}
