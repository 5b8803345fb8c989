package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ways are the direct way and the tunnel, with the time each takes and what comes
// of it. The clock is that of testing/synctest.
type ways struct {
	direct, tunnel  way
	connected, only bool

	mu   sync.Mutex
	used []string
}

type way struct {
	takes time.Duration
	err   error
}

func (w *ways) try(ctx context.Context, name string, by way) (net.Conn, error) {
	w.mu.Lock()
	w.used = append(w.used, name)
	w.mu.Unlock()
	select {
	case <-time.After(by.takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if by.err != nil {
		return nil, by.err
	}
	c, _ := net.Pipe()
	return &named{c, name}, nil
}

type named struct {
	net.Conn
	by string
}

func (w *ways) Connected(node string) bool { return w.connected && node == "n1" }

func (w *ways) Dial(ctx context.Context, node string, addr netip.AddrPort) (net.Conn, error) {
	return w.try(ctx, "tunnel of "+node+" to "+addr.String(), w.tunnel)
}

func (w *ways) dialer() *Dialer {
	return NewDialer(DialerConfig{
		Direct: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return w.try(ctx, "direct to "+addr, w.direct)
		},
		Tunnels: w,
		NodeOf: func(host string) (string, bool) {
			node, ok := map[string]string{"10.0.0.1": "n1", "10.42.0.5": "n1", "n1": "n1", "10.0.0.2": "n2"}[host]
			return node, ok
		},
		TunnelOnly: func(node, host string) bool { return w.only },
		Log:        discard,
	})
}

// dial tells the way that won and how long it took.
func (w *ways) dial(t *testing.T, d *Dialer, addr string) (by string, took time.Duration, err error) {
	t.Helper()
	w.used = nil
	start := time.Now()
	c, err := d.DialContext(t.Context(), "tcp", addr)
	took = time.Since(start)
	synctest.Wait()
	if err != nil {
		return "", took, err
	}
	c.Close()
	return c.(*named).by, took, nil
}

func TestDialerTakesTheWayThatWorks(t *testing.T) {
	lost, refused := way{time.Hour, nil}, way{0, errors.New("connection refused")}
	quick := way{time.Millisecond, nil}
	const node, pod = "10.0.0.1:10250", "10.42.0.5:443"
	for name, c := range map[string]struct {
		ways *ways
		addr string
		by   string
		took time.Duration
		used int
	}{
		"the direct way works":                   {&ways{direct: quick, tunnel: quick, connected: true}, node, "direct to " + node, time.Millisecond, 1},
		"the direct way leads nowhere":           {&ways{direct: lost, tunnel: quick, connected: true}, node, "tunnel of n1 to " + node, directLead + time.Millisecond, 2},
		"the direct way fails":                   {&ways{direct: refused, tunnel: quick, connected: true}, pod, "tunnel of n1 to " + pod, time.Millisecond, 2},
		"the direct way is slow, the tunnel too": {&ways{direct: way{400 * time.Millisecond, nil}, tunnel: lost, connected: true}, node, "direct to " + node, 400 * time.Millisecond, 2},
		"there is no tunnel":                     {&ways{direct: quick, tunnel: quick}, node, "direct to " + node, time.Millisecond, 1},
		"the tunnel is of another node":          {&ways{direct: quick, connected: true}, "10.0.0.2:10250", "direct to 10.0.0.2:10250", time.Millisecond, 1},
		"the host is no node's":                  {&ways{direct: quick, connected: true}, "webhook.example:443", "direct to webhook.example:443", time.Millisecond, 1},
		"a node's name":                          {&ways{direct: refused, tunnel: quick, connected: true}, "n1:10250", "tunnel of n1 to 127.0.0.1:10250", time.Millisecond, 2},
		"the direct way is not to be used":       {&ways{direct: quick, tunnel: quick, connected: true, only: true}, node, "tunnel of n1 to " + node, time.Millisecond, 1},
		"… but there is no tunnel":               {&ways{direct: quick, tunnel: quick, only: true}, node, "direct to " + node, time.Millisecond, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := c.ways
			by, took, err := w.dial(t, w.dialer(), c.addr)
			if err != nil || by != c.by || took != c.took || len(w.used) != c.used {
				t.Errorf("%s: %s after %s, %v, used %q; want %s after %s", name, by, took, err, w.used, c.by, c.took)
			}
		})
	}
}

func TestDialerBeginsWithTheWayThatWonLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ways{direct: way{time.Hour, nil}, connected: true}
		d := w.dialer()
		check := func(when, addr, want string, after time.Duration) {
			t.Helper()
			by, took, err := w.dial(t, d, addr)
			if err != nil || !strings.HasPrefix(by, want) || took != after {
				t.Errorf("%s: %s after %s, %v; want %s after %s", when, by, took, err, want, after)
			}
		}
		const node, pod = "10.0.0.1:10250", "10.42.0.5:443"
		check("at first", node, "tunnel", directLead)
		check("again", node, "tunnel", 0)
		check("another host of the node", pod, "tunnel", 0)
		time.Sleep(memory - time.Second)
		check("a little before it is forgotten", node, "tunnel", 0)
		time.Sleep(time.Second)
		check("when it is forgotten", node, "tunnel", directLead)
		check("the other host after that", pod, "tunnel", 0)

		// The tunnel fails, the direct way works now.
		w.direct, w.tunnel = way{time.Millisecond, nil}, way{0, errors.New("the agent hangs")}
		check("when the tunnel fails", node, "direct", time.Millisecond)
		w.tunnel = way{}
		check("after that", node, "direct", time.Millisecond)
		// Of the pod it is known that the tunnel leads there.
		check("the pod still", pod, "tunnel", 0)
	})
}

func TestDialerForgetsRatherThanGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ways{connected: true}
		d := w.dialer()
		most := 0
		for i := range 2 * maxRemembered {
			d.remember("n1", netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)}).String(), false)
			most = max(most, len(d.won))
		}
		if most < maxRemembered || most > maxRemembered+1 {
			t.Errorf("up to %d ways are remembered", most)
		}
	})
}

func TestDialerNamesBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noRoute := errors.New("no route to host")
		w := &ways{direct: way{0, noRoute}, tunnel: way{0, ErrRefused}, connected: true}
		_, _, err := w.dial(t, w.dialer(), "10.0.0.1:10250")
		if !errors.Is(err, noRoute) || !errors.Is(err, ErrRefused) || !strings.HasPrefix(err.Error(), "dial 10.0.0.1:10250 on node n1: directly: no route to host; ") {
			t.Errorf("the error is %v", err)
		}
		for _, addr := range []string{"10.0.0.1", "10.0.0.1:http", "10.0.0.1:65536"} {
			if _, _, err := w.dial(t, w.dialer(), addr); err == nil || !strings.Contains(err.Error(), addr) && !strings.Contains(err.Error(), "port") {
				t.Errorf("%s: %v", addr, err)
			}
		}
	})
}

func TestDialerWithARealTunnel(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	addr := target(t, echo)
	d := NewDialer(DialerConfig{
		Direct:  func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") },
		Tunnels: a.Server,
		NodeOf:  func(host string) (string, bool) { return "n1", host == "127.0.0.1" },
		Log:     discard,
	})
	c, err := d.DialContext(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c, "through NAT")
}
