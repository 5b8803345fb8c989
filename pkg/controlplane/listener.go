package controlplane

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// farewell is how long clients have to read that their connections end.
const farewell = 20 * time.Millisecond

// listener is the API server's. It tells when that begins to accept, and shortens its
// end: for clients that have not hung up by themselves, which are all that just wait,
// an HTTP/2 server waits a second after it has told them that it goes. Here their
// connections end once all that was asked is answered.
type listener struct {
	net.Listener
	once      sync.Once
	accepting chan struct{}

	mu       sync.Mutex
	open     map[*tracked]struct{}
	requests int // being answered
	closed   bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, accepting: make(chan struct{}), open: map[*tracked]struct{}{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.once.Do(func() { close(l.accepting) })
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := &tracked{Conn: c, of: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[t] = struct{}{}
	return t, nil
}

// Close is how an HTTP server begins its end.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.endSoon()
	return l.Listener.Close()
}

// endSoon ends the connections of a closed listener, unless something is being
// answered. The caller holds mu.
func (l *listener) endSoon() {
	if l.closed && l.requests == 0 {
		time.AfterFunc(farewell, l.hangUp)
	}
}

func (l *listener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.requests > 0 {
		return // it came in the meantime
	}
	for c := range l.open {
		_ = c.Conn.Close() // its server hears of it
	}
	clear(l.open)
}

// count has the listener know of requests that are being answered.
func (l *listener) count(h http.Handler) http.Handler {
	add := func(n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.requests += n; n < 0 {
			l.endSoon()
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		add(1)
		defer add(-1)
		h.ServeHTTP(w, r)
	})
}

// tracked is a connection that its listener knows of.
type tracked struct {
	net.Conn
	of *listener
}

func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t)
	t.of.mu.Unlock()
	return t.Conn.Close()
}
