package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

func TestConnectionsKeepTheContractOfNetConn(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, err = a.Dial(t.Context(), "n1", lis.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			return nil, nil, nil, err
		}
		if c2, err = lis.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

func TestMuchDataBothWaysAtOnce(t *testing.T) {
	const size = 64 << 20
	data := func(seed byte) io.Reader {
		return io.LimitReader(mathrand.NewChaCha8([32]byte{seed}), size)
	}
	sum := func(r io.Reader) (n int64, sum [32]byte) {
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err != nil {
			t.Error(err)
		}
		return n, [32]byte(h.Sum(nil))
	}
	type result struct {
		n   int64
		sum [32]byte
	}
	arrived := make(chan result, 1)
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		var sender sync.WaitGroup
		sender.Go(func() {
			if _, err := io.Copy(c, data(1)); err != nil {
				t.Error(err)
			}
			c.CloseWrite()
		})
		n, s := sum(c)
		sender.Wait()
		arrived <- result{n, s}
	}))
	c.SetDeadline(time.Now().Add(time.Minute))
	var sender sync.WaitGroup
	sender.Go(func() {
		if _, err := io.Copy(c, data(2)); err != nil {
			t.Error(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	n, s := sum(c)
	sender.Wait()
	if _, want := sum(data(1)); n != size || s != want {
		t.Errorf("from the target came %d bytes, the same: %t", n, s == want)
	}
	there := <-arrived
	if _, want := sum(data(2)); there.n != size || there.sum != want {
		t.Errorf("to the target came %d bytes, the same: %t", there.n, there.sum == want)
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	addr := target(t, echo)
	var streams sync.WaitGroup
	for i := range 200 {
		streams.Go(func() {
			c, err := a.Dial(t.Context(), "n1", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			text := bytes.Repeat(fmt.Appendf(nil, "stream %d ", i), 2000)
			go c.Write(text)
			got := make([]byte, len(text))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
				t.Errorf("stream %d: %v, the same: %t", i, err, bytes.Equal(got, text))
			}
		})
	}
	streams.Wait()
}

func TestAddressesAreThoseOfTheTarget(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	addr := target(t, echo)
	c := through(t, a, "n1", addr)
	if c.RemoteAddr().String() != addr.String() || c.LocalAddr() == nil {
		t.Errorf("from %v to %v", c.LocalAddr(), c.RemoteAddr())
	}
}

func TestOneDirectionEndsAlone(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))

	// The server's.
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		all, err := io.ReadAll(c)
		fmt.Fprintf(c, "%q, %v", all, err)
	}))
	io.WriteString(c, "a question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("more")); err == nil {
		t.Error("data is taken after the end")
	}
	if got, err := io.ReadAll(c); string(got) != `"a question", <nil>` || err != nil {
		t.Errorf("read %q, %v", got, err)
	}

	// The target's.
	got := make(chan string, 1)
	c = through(t, a, "n1", target(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello")
		c.CloseWrite()
		all, err := io.ReadAll(c)
		got <- fmt.Sprintf("%q, %v", all, err)
	}))
	if all, err := io.ReadAll(c); string(all) != "hello" || err != nil {
		t.Errorf("read %q, %v", all, err)
	}
	io.WriteString(c, "and now me")
	c.CloseWrite()
	if got := <-got; got != `"and now me", <nil>` {
		t.Errorf("the target read %s", got)
	}
}

func TestBrokenTargetIsNoEndOfData(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		io.WriteString(c, "half of i")
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0) // Close resets
	}))
	if _, err := io.ReadFull(c, make([]byte, len("half of i"))); err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "connection reset by peer") {
		t.Errorf("the error is %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("data is taken for a target that broke")
	}
}

// Reading and writing meet the reset in either order.
func TestReadAndWriteEndWhenTheTargetBreaks(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	for range 30 {
		full := make(chan struct{})
		c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
			<-full // does not read meanwhile
			c.SetLinger(0)
		}))
		ended := make(chan error, 2)
		go func() {
			for {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					ended <- err
					return
				}
			}
		}()
		go func() { ended <- second(c.Read(make([]byte, 1))) }()
		time.Sleep(5 * time.Millisecond)
		close(full)
		for range 2 {
			if err := <-ended; err == io.EOF || !strings.Contains(err.Error(), "behind the tunnel") {
				t.Errorf("it ends with %v", err)
			}
		}
		c.Close()
	}
}

func TestCloseEndsTheTargetsConnection(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	ended := make(chan error, 1)
	addr := target(t, func(c *net.TCPConn) {
		for { // like the logs of a busy pod
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				return
			}
		}
	})
	c := through(t, a, "n1", addr)
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for the window to be used up
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the target goes on to send")
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
	for what, err := range map[string]error{
		"Read":             second(c.Read(make([]byte, 1))),
		"Write":            second(c.Write(make([]byte, 1))),
		"CloseWrite":       c.CloseWrite(),
		"SetDeadline":      c.SetDeadline(time.Time{}),
		"SetReadDeadline":  c.SetReadDeadline(time.Time{}),
		"SetWriteDeadline": c.SetWriteDeadline(time.Time{}),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	eventually(t, "the stream is forgotten on both sides", func() bool { return c.link.session.NumStreams() == 0 })
}

func second[T any](_ T, err error) error { return err }

func TestWhatWasWrittenBeforeCloseArrives(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	got := make(chan int, 1)
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		got <- len(all)
	}))
	const size = 200 << 10 // less than a window, so that Close overtakes it if it can
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := <-got; n != size {
		t.Errorf("%d of %d bytes arrived", n, size)
	}
}

// A Write that met its deadline can be gone on with, wherever it stopped.
func TestDeadlineInTheMiddleOfAWriteLosesNothing(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	read := make(chan struct{})
	got := make(chan []byte, 1)
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		<-read
		all, _ := io.ReadAll(c)
		got <- all
	}))
	want := make([]byte, 16<<20)
	mathrand.NewChaCha8([32]byte{3}).Read(want)
	c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, err := c.Write(want)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == len(want) {
		t.Fatalf("%d bytes were written, %v", n, err)
	}
	if m, err := c.Write(want[n:]); m != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d more bytes after the deadline, %v", m, err)
	}
	if c.owed > 0 {
		if err := c.CloseWrite(); !errors.Is(err, errTorn) {
			t.Errorf("the end in the middle of a record: %v", err)
		}
	}
	close(read)
	c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(want[n:]); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-got; !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(want))
	}
}

func TestDeadlineInTheMiddleOfAReadLosesNothing(t *testing.T) {
	ours, theirs := net.Pipe()
	server, err := newLink(ours, ours, true, time.Hour, discard)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := newLink(theirs, theirs, false, time.Hour, discard)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.fail(io.EOF)
	defer server.fail(io.EOF)
	stream, err := server.session.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	other, err := agent.session.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(server, stream, nil)
	var got []byte
	buf := make([]byte, 8)
	for _, b := range append(head(kindData, 2), "ok"...) {
		if _, err := other.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("after %q: %v", got, err)
		}
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for len(got) < 2 {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != "ok" {
		t.Errorf("read %q", got)
	}
}

// testLink is a link over a pipe, for what needs one.
func testLink(t testing.TB) *link {
	t.Helper()
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	l, err := newLink(ours, ours, true, time.Hour, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.fail(errors.New("the test is over"))
		theirs.Close()
	})
	return l
}

func TestDialTellsWhatTheAgentMet(t *testing.T) {
	a := newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	log := &logs{}
	cfg.Log = debugLog(log)
	cfg.Allow = func(addr netip.AddrPort) bool { return addr.Addr().IsLoopback() }
	cfg.DialTarget = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasSuffix(addr, ":7") {
			return nil, errors.New("a text of\ntwo lines, and long" + strings.Repeat(" ", 2000))
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	join(t, a, cfg)
	free := target(t, echo)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lis.Close()
	for _, c := range []struct {
		node, addr string
		is         error
		says       string
	}{
		{"n2", free.String(), ErrNotConnected, "the tunnel of node n2"},
		{"n1", "192.0.2.1:10250", ErrRefused, "192.0.2.1:10250 is neither"},
		{"n1", "[2001:db8::1]:443", ErrRefused, "[2001:db8::1]:443 is neither"},
		{"n1", lis.Addr().String(), nil, "connection refused"},
		{"n1", "127.0.0.1:7", nil, "a text of two lines"},
	} {
		conn, err := a.Dial(t.Context(), c.node, netip.MustParseAddrPort(c.addr))
		if err == nil {
			conn.Close()
			t.Errorf("%s on %s is reached", c.addr, c.node)
			continue
		}
		if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s on %s: %v, want %q", c.addr, c.node, err, c.says)
		}
	}
	if text := log.String(); !strings.Contains(text, "level=DEBUG") || !strings.Contains(text, "target=192.0.2.1:10250") {
		t.Errorf("the log does not tell what was refused:\n%s", text)
	}
	wantEcho(t, through(t, a, "n1", free), "still works")
}

func TestDialEndsWithItsContext(t *testing.T) {
	a := newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	dialing := make(chan struct{}, 1)
	left := make(chan struct{})
	cfg.DialTarget = func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialing <- struct{}{}
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}
	c, stop := join(t, a, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-dialing
		cancel()
	}()
	if _, err := a.Dial(ctx, "n1", netip.MustParseAddrPort("10.0.0.1:1")); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	if connected(c) != 1 {
		t.Error("the tunnel did not survive")
	}
	eventually(t, "nothing waits for the agent's answer", func() bool { return !strings.Contains(goroutines(), "tunnel.(*link).ask") })
	stop() // ends what the agent still dials
	<-left
}

func FuzzRecords(f *testing.F) {
	record := func(k kind, text string) []byte { return append(head(k, len(text)), text...) }
	f.Add(record(kindTarget, "127.0.0.1:10250"))
	f.Add(append(record(kindData, "data"), record(kindEnd, "")...))
	f.Add(append(record(kindData, ""), record(kindAbort, "no\nmore")...))
	f.Add([]byte{byte(kindData), 0xff, 0xff, 'x'})
	f.Add([]byte{0, 0, 0})
	f.Add(append([]byte{byte(kindAbort), 0xff, 0xff}, record(kindData, "x")...))
	l := testLink(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		c := newConn(l, &stored{Reader: bytes.NewReader(text)}, nil)
		got, err := io.ReadAll(c)
		if len(got) > max(0, len(text)-headSize) {
			t.Errorf("%d bytes of data are in a text of %d", len(got), len(text))
		}
		if err == nil && !bytes.Contains(text, head(kindEnd, 0)[:1]) {
			t.Error("data ends without its end")
		}
		if _, again := c.Read(make([]byte, 1)); again == nil {
			t.Error("there is more after the end")
		}
		c = newConn(l, &stored{Reader: bytes.NewReader(text)}, nil)
		if addr, err := c.target(); err == nil && !addr.IsValid() {
			t.Errorf("%q is the target %s", text, addr)
		}
		c = newConn(l, &stored{Reader: bytes.NewReader(text)}, nil)
		if err := c.answer(); err != nil && strings.ContainsAny(err.Error(), "\r\n\x00\x1b") {
			t.Errorf("the error is %q", err)
		}
	})
}

// stored is a stream that holds a text.
type stored struct {
	io.Reader
	net.Conn
}

func (s *stored) Read(p []byte) (int, error)         { return s.Reader.Read(p) }
func (s *stored) SetWriteDeadline(t time.Time) error { return nil }
