package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/tests/harness"
)

// relay is a bad line to the server: it passes connections on from a machine
// in between, late, and can forget them as NAT does.
type relay struct {
	delay  time.Duration
	listen net.Listener
	dial   func(context.Context) (net.Conn, error)

	mu    sync.Mutex
	conns map[net.Conn]*line
	wg    sync.WaitGroup
}

// line is one connection, both ways.
type line struct {
	dead chan struct{}
	once sync.Once
}

func (l *line) forget() { l.once.Do(func() { close(l.dead) }) }

// throughRelay sends all that the agent says to its server through a machine in
// between. What they say comes later by delay, each way.
func throughRelay(t *testing.T, server, agent *harness.Node, delay time.Duration) *relay {
	t.Helper()
	between := server.Neighbour(t)
	l, err := between.Listen(t.Context(), "tcp", net.JoinHostPort(between.Addr().String(), "6443"))
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(server.Host.Addr().String(), "6443")
	ctx, stop := context.WithCancel(context.Background())
	r := &relay{delay: delay, listen: l, conns: map[net.Conn]*line{}}
	r.dial = func(ctx context.Context) (net.Conn, error) { return between.DialContext(ctx, "tcp", address) }
	r.wg.Go(func() { r.accept(ctx) })
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		r.mu.Lock()
		for c, l := range r.conns {
			l.forget()
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	agent.Exec(t, nft, fmt.Sprintf(`add table ip relay; add chain ip relay out { type nat hook output priority -100; }; `+
		`add rule ip relay out ip daddr %s tcp dport 6443 dnat to %s:6443`, server.Host.Addr(), between.Addr()))
	return r
}

func (r *relay) accept(ctx context.Context) {
	for {
		near, err := r.listen.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() {
			defer near.Close()
			far, err := r.dial(ctx)
			if err != nil {
				return
			}
			defer far.Close()
			l := &line{dead: make(chan struct{})}
			r.mu.Lock()
			r.conns[near], r.conns[far] = l, l
			r.mu.Unlock()
			var both sync.WaitGroup
			both.Go(func() { r.pass(l, far, near) })
			both.Go(func() { r.pass(l, near, far) })
			both.Wait()
			r.mu.Lock()
			delete(r.conns, near)
			delete(r.conns, far)
			r.mu.Unlock()
		})
	}
}

// piece is what was said, and when it is to be heard.
type piece struct {
	bytes []byte
	due   time.Time
}

func (r *relay) pass(l *line, to, from net.Conn) {
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 16<<10)
			n, err := from.Read(buf)
			if n > 0 {
				select {
				case pieces <- piece{buf[:n], time.Now().Add(r.delay)}:
				case <-l.dead:
					// What a forgotten mapping says is taken, and gets nowhere.
					_, _ = io.Copy(io.Discard, from)
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		select {
		case <-time.After(time.Until(p.due)):
		case <-l.dead:
			continue
		}
		if _, err := to.Write(p.bytes); err != nil {
			_ = from.Close()
		}
	}
	select {
	case <-l.dead: // nobody is told
	default:
		_ = to.(*net.TCPConn).CloseWrite()
	}
}

// forget drops the mappings of all connections: neither end hears of it.
func (r *relay) forget() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.conns {
		l.forget()
	}
	return len(r.conns) / 2
}
