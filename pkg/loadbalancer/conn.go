package loadbalancer

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/knarr-dev/knarr/pkg/dial"
)

var errRemoved = errors.New("the cluster no longer has this API server")

// conn is a connection to a server.
type conn struct {
	net.Conn
	lb     *LoadBalancer
	server *server
	why    atomic.Pointer[error] // it was cut for this
}

// NetConn is what c is wrapped around.
func (c *conn) NetConn() net.Conn { return c.Conn }

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.explain(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

// CloseWrite tells the server that no more comes.
func (c *conn) CloseWrite() error { return closeWrite(c.Conn) }

func (c *conn) Close() error {
	c.lb.mu.Lock()
	delete(c.server.conns, c)
	c.lb.mu.Unlock()
	return c.Conn.Close()
}

// explain says why a connection was cut, and has the server of one that ended
// in silence checked.
func (c *conn) explain(err error) error {
	if err == nil {
		return nil
	}
	if why := c.why.Load(); why != nil {
		return fmt.Errorf("connection to API server %s was cut: %w", c.server.addr, *why)
	}
	c.judge(err)
	return err
}

func (c *conn) judge(err error) {
	if errors.Is(err, syscall.ETIMEDOUT) {
		c.lb.doubt(c.server)
	}
}

// cut closes the connection under whoever uses it, without a farewell: a TLS
// connection to a proxy would first try to send one.
func (c *conn) cut(why error) {
	c.why.CompareAndSwap(nil, &why)
	dial.Inner(c.Conn).Close()
}

// heardSince tells whether the server sent anything after t.
func (c *conn) heardSince(t time.Time) bool { return c.lastHeard().After(t) }

// lastHeard is zero where it can't be known.
func (c *conn) lastHeard() time.Time {
	now := time.Now() // before it is asked, so that a delay makes it seem longer ago
	ago, ok := dial.Heard(c.Conn)
	if !ok {
		return time.Time{}
	}
	return now.Add(-ago)
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
