package nodeport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	// dialTimeout bounds how long a client waits for an endpoint that drops
	// packets.
	dialTimeout = 30 * time.Second
	// acceptPause is how long a listener rests when the process has no file
	// descriptor left.
	acceptPause = 50 * time.Millisecond
)

// accept forwards each connection to the address to, until l is closed.
func accept(ctx context.Context, tasks *sync.WaitGroup, l net.Listener, to netip.AddrPort) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		tasks.Go(func() { forward(ctx, conn.(*net.TCPConn), to) })
	}
}

// forward joins a client with the address to, until both have finished or ctx
// ends. A client whose Service has no endpoint sees its connection reset.
func forward(ctx context.Context, client *net.TCPConn, to netip.AddrPort) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		reset(client)
		return
	}
	server := conn.(*net.TCPConn)
	stop := context.AfterFunc(ctx, func() {
		reset(client)
		reset(server)
	})
	defer stop()

	var other sync.WaitGroup
	other.Go(func() { pump(server, client) })
	pump(client, server)
	other.Wait()
	_ = client.Close()
	_ = server.Close()
}

// pump copies what from sends and passes its end on: a finished direction is
// finished on the other side too, a broken connection breaks both.
func pump(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		reset(to)
		reset(from)
		return
	}
	// The other side may be gone already; then there is nobody to tell.
	if err := to.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		reset(from)
	}
}

// reset closes a connection in a way that its peer takes for an error.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
