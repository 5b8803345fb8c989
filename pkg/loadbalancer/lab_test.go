package loadbalancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiServer answers each line with its own name before it.
type apiServer struct {
	name, addr string

	mu    sync.Mutex
	lis   net.Listener
	deaf  chan struct{} // closed once it accepts no more
	conns []net.Conn
}

// newServer starts one; addr is empty for any free port.
func newServer(t *testing.T, name, addr string) *apiServer {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{name: name, addr: lis.Addr().String(), lis: lis, deaf: make(chan struct{})}
	t.Cleanup(s.kill)
	go func() {
		defer close(s.deaf)
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			go s.serve(c)
		}
	}()
	return s
}

func (s *apiServer) serve(c net.Conn) {
	defer c.Close()
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if _, err := fmt.Fprintf(c, "%s: %s\n", s.name, lines.Text()); err != nil {
			return
		}
	}
}

// deafen has it accept no more; what is open stays.
func (s *apiServer) deafen() {
	s.lis.Close()
	<-s.deaf
}

func (s *apiServer) kill() {
	s.deafen()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}

// freeAddr is an address on which nothing listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func newBalancer(t *testing.T, cfg Config) *LoadBalancer {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start runs one that listens. Its stop is tested for what it leaves behind.
func start(t *testing.T, cfg Config) (l *LoadBalancer, stop func()) {
	t.Helper()
	if cfg.Listener == nil && !cfg.Listen.IsValid() {
		cfg.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	}
	l = newBalancer(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- l.Run(ctx, ready) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
		wantNoGoroutines(t)
	})
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-result:
		t.Fatalf("Run before it was ready: %v", err)
	}
	return l, stop
}

// wantNoGoroutines waits for those of this package and of package dial to end.
func wantNoGoroutines(t *testing.T) {
	t.Helper()
	var left []string
	for range 1000 {
		left = nil
		all := make([]byte, 4<<20)
		for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
			for _, sign := range []string{"loadbalancer.(*LoadBalancer)", "loadbalancer.(*conn)", "loadbalancer.copyHalf", "dial.First"} {
				if strings.Contains(stack, sign) {
					left = append(left, stack)
					break
				}
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}

// client is a connection through the proxy.
type client struct {
	net.Conn
	lines *bufio.Reader
}

func dialProxy(t *testing.T, l *LoadBalancer) *client {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return &client{c, bufio.NewReader(c)}
}

// ask tells which server answers.
func (c *client) ask(text string) (server string, err error) {
	if _, err := fmt.Fprintln(c, text); err != nil {
		return "", err
	}
	line, err := c.lines.ReadString('\n')
	server, said, _ := strings.Cut(strings.TrimSpace(line), ": ")
	if err == nil && said != text {
		err = fmt.Errorf("asked %q, answered %q", text, line)
	}
	return server, err
}

func wantServer(t *testing.T, c *client, want string) {
	t.Helper()
	if got, err := c.ask("who?"); err != nil || got != want {
		t.Fatalf("%q answers (%v), want %q", got, err, want)
	}
}

// wantCut waits for the connection to end.
func wantCut(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := c.Read(make([]byte, 1))
	var late net.Error
	if err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("the connection was not cut: %v", err)
	}
}

func statusOf(t *testing.T, l *LoadBalancer, addr string) ServerStatus {
	t.Helper()
	for _, s := range l.Status().Servers {
		if s.Address == addr {
			return s
		}
	}
	t.Fatalf("no server %s in %+v", addr, l.Status())
	return ServerStatus{}
}
