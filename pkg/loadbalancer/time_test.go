package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// network is made of servers that are up, refuse, or swallow what is sent, and
// of a clock that testing/synctest moves.
type network struct {
	mu    sync.Mutex
	state map[string]string // by address: up, refused, lost
	asked map[string][]time.Time
	fail  map[string]chan struct{} // closed: open connections end with ETIMEDOUT
}

func newNetwork(states map[string]string) *network {
	n := &network{state: states, asked: map[string][]time.Time{}, fail: map[string]chan struct{}{}}
	for addr := range states {
		n.fail[addr] = make(chan struct{})
	}
	return n
}

func (n *network) set(addr, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state[addr] = state
}

// attempts are the times at which addr was dialled, and forgets them.
func (n *network) attempts(addr string) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.asked[addr]
	n.asked[addr] = nil
	return all
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.asked[addr] = append(n.asked[addr], time.Now())
	state, fail := n.state[addr], n.fail[addr]
	n.mu.Unlock()
	switch state {
	case "up":
		client, server := net.Pipe()
		go io.Copy(io.Discard, server)
		return &silent{client, fail}, nil
	case "refused":
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	default:
		<-ctx.Done()
		return nil, ctx.Err()
	}
}

// silent is a connection that may end as TCP does when nothing comes any more.
type silent struct {
	net.Conn
	fail chan struct{}
}

func (s *silent) Read(p []byte) (int, error) {
	read := make(chan error, 1)
	go func() {
		_, err := s.Conn.Read(p)
		read <- err
	}()
	select {
	case err := <-read:
		return 0, err
	case <-s.fail:
		return 0, &net.OpError{Op: "read", Err: syscall.ETIMEDOUT}
	}
}

func (n *network) balancer(t *testing.T, given ...string) *LoadBalancer {
	t.Helper()
	l, err := New(Config{Servers: given, Dial: n.dial, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// runs has l look after dead servers.
func runs(t *testing.T, l *LoadBalancer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- l.Run(ctx, ready) }()
	<-ready
	return func() {
		cancel()
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

// dialled tells which server a dial gets.
func dialled(t *testing.T, l *LoadBalancer) string {
	t.Helper()
	c, err := l.DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return l.Status().Current
}

func TestNextServerIsTriedWhileOneStaysSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"a:1": "lost", "b:1": "refused", "c:1": "up"})
		l := n.balancer(t, "a:1", "b:1", "c:1")
		start := time.Now()
		if got := dialled(t, l); got != "c:1" || time.Since(start) != patience {
			t.Errorf("%s after %s, want c:1 after %s", got, time.Since(start), patience)
		}
		// What was given up is not known to be dead, but it is not the first any more.
		start = time.Now()
		if got := dialled(t, l); got != "c:1" || time.Since(start) != 0 {
			t.Errorf("the next dial: %s after %s", got, time.Since(start))
		}
	})
}

func TestDialFailsSoonWhenNoServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"a:1": "refused", "b:1": "refused"})
		l := n.balancer(t, "a:1", "b:1")
		start := time.Now()
		var dials sync.WaitGroup
		for range 100 {
			dials.Go(func() {
				_, err := l.DialContext(t.Context(), "tcp", "")
				if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "a:1: connection refused; b:1: connection refused") {
					t.Errorf("the error is %v", err)
				}
			})
		}
		dials.Wait()
		if took := time.Since(start); took != patience {
			t.Errorf("it took %s, want %s", took, patience)
		}
		// All dials share the attempts at a dead server, but for the first.
		if got := len(n.attempts("a:1")); got > 100+5 {
			t.Errorf("100 dials made %d attempts", got)
		}
		n.set("a:1", "lost")
		n.set("b:1", "lost")
		start = time.Now()
		for range 100 {
			dials.Go(func() {
				if _, err := l.DialContext(t.Context(), "tcp", ""); !errors.Is(err, ErrNoServer) {
					t.Errorf("the error is %v", err)
				}
			})
			time.Sleep(time.Millisecond)
		}
		dials.Wait()
		if took := time.Since(start); took > patience+attemptTimeout+patience {
			t.Errorf("with servers that are silent it took %s", took)
		}
		if got := len(n.attempts("a:1")); got > 3 {
			t.Errorf("100 dials made %d attempts at a server that is known to be dead", got)
		}
	})
}

func TestDialWaitsForAServerThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"a:1": "refused"})
		l := n.balancer(t, "a:1")
		time.AfterFunc(500*time.Millisecond, func() { n.set("a:1", "up") })
		start := time.Now()
		if got := dialled(t, l); got != "a:1" || time.Since(start) > patience {
			t.Errorf("%s after %s", got, time.Since(start))
		}
	})
}

func TestDialThatIsGivenUpTellsNothingAboutTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"a:1": "lost"})
		l := n.balancer(t, "a:1")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := l.DialContext(ctx, "tcp", ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		synctest.Wait()
		if s := l.Status().Servers[0]; s.State != StateUnknown || s.LastError != "" {
			t.Errorf("the status is %+v", s)
		}
	})
}

func TestLastResortIsLeftWhenAServerOfTheClusterIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"given:1": "up", "learned:1": "refused"})
		l := n.balancer(t, "given:1")
		stop := runs(t, l)
		defer stop()
		if got := dialled(t, l); got != "given:1" {
			t.Fatalf("%s is taken", got)
		}
		l.SetServers([]string{"learned:1"})
		if got := dialled(t, l); got != "given:1" {
			t.Fatalf("%s is taken", got)
		}
		n.attempts("learned:1")
		const away = 10 * time.Minute
		time.Sleep(away)
		if got := len(n.attempts("learned:1")); got < int(away/quietPause)-1 || got > int(away/quietPause)+10 {
			t.Errorf("a server that is away for %s is asked %d times", away, got)
		}
		n.set("learned:1", "up")
		time.Sleep(quietPause)
		synctest.Wait()
		n.attempts("given:1")
		if got := dialled(t, l); got != "learned:1" || len(n.attempts("given:1")) != 0 {
			t.Errorf("%s is taken", got)
		}
		n.attempts("learned:1")
		time.Sleep(time.Hour)
		if got := len(n.attempts("learned:1")) + len(n.attempts("given:1")); got != 0 {
			t.Errorf("healthy servers are asked %d times", got)
		}
	})
}

func TestServerIsCheckedWhenAConnectionDiesInSilence(t *testing.T) {
	for name, through := range map[string]bool{"a client in the process": false, "the proxy": true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(map[string]string{"a:1": "up", "b:1": "up"})
			l := n.balancer(t, "a:1", "b:1")
			stop := runs(t, l)
			defer stop()
			dies, err := l.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			defer dies.Close()
			n.mu.Lock()
			ends := n.fail["a:1"]
			n.fail["a:1"] = make(chan struct{})
			n.mu.Unlock()
			other, err := l.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()

			n.set("a:1", "lost")
			close(ends)
			if through {
				ours, theirs := net.Pipe()
				defer ours.Close()
				dies.(*conn).judge(copyHalf(theirs, dies.(*conn).Conn))
			} else if _, err := dies.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("%s: the connection ends with %v", name, err)
			}
			start := time.Now()
			if _, err := other.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "was cut") {
				t.Errorf("%s: the other connection ends with %v", name, err)
			}
			if took := time.Since(start); took != attemptTimeout {
				t.Errorf("%s: the other connection ends after %s, want %s", name, took, attemptTimeout)
			}
		})
	}
}

func TestAwaitFindsAServerWithinASecondAfterAnHour(t *testing.T) {
	for _, before := range []string{"refused", "lost"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(map[string]string{"a:1": before, "b:1": "refused"})
			l := n.balancer(t, "a:1", "b:1")
			up := time.Hour + 123*time.Millisecond
			time.AfterFunc(up, func() { n.set("a:1", "up") })
			start := time.Now()
			if err := l.Await(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < up || took > up+time.Second {
				t.Errorf("%s: the server is found after %s, it came after %s", before, took, up)
			}
			if got := len(n.attempts("a:1")); got < 3600 || got > 3610 {
				t.Errorf("%s: %d attempts in an hour", before, got)
			}
			if got := dialled(t, l); got != "a:1" {
				t.Errorf("%s: %s is taken", before, got)
			}
		})
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"a:1": "lost"})
		l := n.balancer(t, "a:1")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the user pressed Ctrl-C"))
		defer cancel()
		start := time.Now()
		err := l.Await(ctx)
		if err == nil || !strings.Contains(err.Error(), "Ctrl-C") || time.Since(start) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestServerLearnedWhileDialsWaitIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(map[string]string{"given:1": "lost", "learned:1": "up"})
		l := n.balancer(t, "given:1")
		found := make(chan error, 1)
		go func() { found <- l.Await(t.Context()) }()
		time.Sleep(10 * time.Second)
		l.SetServers([]string{"learned:1"})
		start := time.Now()
		if err := <-found; err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func ExampleLoadBalancer_DialContext() {
	l, err := New(Config{
		Servers: []string{"server.example:6443"},
		Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED },
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = l.DialContext(context.Background(), "tcp", "")
	fmt.Println(err)
	// Output: no API server answers: server.example:6443: connection refused
}
