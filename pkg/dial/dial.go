// Package dial makes TCP connections over networks that fail: connections that
// notice that their peer is gone, that go through an HTTP proxy, or that take
// the first of several ways that works.
//
// What an agent's connections are set to, and why. A peer that dies tells so by
// FIN or RST; one behind a broken network tells nothing, and Linux then waits
// for 15 minutes (unacknowledged data) or two hours (none). Here it is noticed
// within about 15 seconds:
//
//   - TCP_KEEPIDLE 6 s, TCP_KEEPINTVL 3 s: while nothing is on its way, a probe
//     goes out after 6 s of silence and then every 3 s. Three probes fit before
//     the end, so a lost packet costs no connection. A connection that is idle
//     costs some 130 bytes every 6 s.
//   - TCP_USER_TIMEOUT 15 s: data or probes that went unacknowledged for 15 s end
//     the connection with ETIMEDOUT. Linux counts this in place of TCP_KEEPCNT
//     (tcp_keepalive_timer in net/ipv4/tcp_timer.c); other systems count 3
//     probes, which is the same time. It bounds connecting too.
//
// The listening side takes the same keep-alive, by [ListenConfig], but no user
// timeout: that would also end a connection whose client is alive and does not
// read for 15 s (kubectl logs into a pager).
package dial

import (
	"context"
	"net"
	"strings"
	"syscall"
	"time"
)

// Func connects; it is of the type of net.Dialer's DialContext.
type Func = func(ctx context.Context, network, addr string) (net.Conn, error)

// silence is how long a peer may stay silent while something is owed.
const silence = 15 * time.Second

// KeepAlive is how silent connections are probed: 6 s, then every 3 s, 3 times.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 6 * time.Second, Interval: 3 * time.Second, Count: 3}
}

// Dialer makes connections that end with ETIMEDOUT about 15 seconds after their
// peer became unreachable.
func Dialer() *net.Dialer { return dialer(KeepAlive(), silence) }

func dialer(keepAlive net.KeepAliveConfig, silence time.Duration) *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: keepAlive,
		Control: func(network, _ string, c syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = setUserTimeout(int(fd), silence)
			})
			if err != nil {
				return err
			}
			return failed
		},
	}
}

// ListenConfig listens for connections that are probed when silent, so that one
// whose client is unreachable does not stay for ever.
func ListenConfig() *net.ListenConfig { return &net.ListenConfig{KeepAliveConfig: KeepAlive()} }

// Inner returns the connection that c is wrapped around, as far as each layer
// has a method NetConn (as tls.Conn has); it is c itself when there is none.
func Inner(c net.Conn) net.Conn {
	for {
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = layer.NetConn()
	}
}

// Heard tells how long ago c's peer last sent anything, be it the bare
// acknowledgement of a probe. It is false for what is not an open TCP
// connection. Behind a proxy the peer is the proxy.
func Heard(c net.Conn) (time.Duration, bool) {
	info, ok := tcpInfo(c)
	if !ok {
		return 0, false
	}
	return info.heard, true
}

// Gone tells whether nothing is left of c in the kernel: it was reset, or both
// sides have closed it. A reset is reported to one system call only; a Read
// after a Write that met it finds the end of data, as if all had been sent.
func Gone(c net.Conn) bool {
	info, ok := tcpInfo(c)
	return ok && info.closed
}

// tcpState is what the kernel says of a connection.
type tcpState struct {
	heard  time.Duration // since its peer last sent anything
	closed bool
}

func tcpInfo(c net.Conn) (tcpState, bool) {
	sc, ok := Inner(c).(syscall.Conn)
	if !ok {
		return tcpState{}, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return tcpState{}, false
	}
	var state tcpState
	known := false
	err = raw.Control(func(fd uintptr) { state, known = stateOf(int(fd)) })
	return state, err == nil && known
}
