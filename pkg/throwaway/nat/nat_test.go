package nat_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/nat"
)

// world is an address that is nobody's (RFC 5737), and means this test here.
const world = "203.0.113.7"

// limit bounds every wait; it only counts when a test is about to fail.
const limit = time.Minute

const aloneEnv = "NAT_TEST_ALONE"

// Hosts are made with mounts of their own: other tests mount disks meanwhile.
func TestMain(m *testing.M) {
	if lab.MaybeInit() {
		return
	}
	if os.Geteuid() != 0 || os.Getenv(aloneEnv) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), aloneEnv+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := c.Run(); err != nil {
		os.Exit(1)
	}
}

// outside is what dials for the hosts: addresses of the world are ports of this
// process, and none leads further.
type outside map[string]net.Addr

func (o outside) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	to, ok := o[network+" "+addr]
	if !ok {
		return nil, fmt.Errorf("%s %s: %w", network, addr, unix.ECONNREFUSED)
	}
	return (&net.Dialer{}).DialContext(ctx, network, to.String())
}

// newHost is one with a way to the outside.
func newHost(t *testing.T, o outside) (*lab.Host, *nat.Gateway) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := lab.New(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	tun, err := l.Outlet()
	if err != nil {
		t.Fatal(err)
	}
	g, err := nat.New(tun, lab.OutletMTU, o.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	h, err := l.AddHost(t.Context(), lab.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return h, g
}

func dialFrom(t *testing.T, h *lab.Host, network, port string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := h.DialContext(ctx, network, net.JoinHostPort(world, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// listen serves each connection until the test ends.
func listen(t *testing.T, serve func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr()
}

func TestStreamsGoOutWholeInBothDirections(t *testing.T) {
	const size = 16 << 20
	sum := sha256.New()
	received := make(chan []byte, 1)
	addr := listen(t, func(conn net.Conn) {
		// All of it is read before anything is answered, so each side ends its own.
		_, _ = io.Copy(sum, conn)
		received <- sum.Sum(nil)
		_, _ = io.Copy(conn, random(size))
	})
	h, _ := newHost(t, outside{"tcp " + world + ":80": addr})
	conn := dialFrom(t, h, "tcp", "80")
	want := sha256.New()
	if _, err := io.Copy(conn, io.TeeReader(random(size), want)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	back := sha256.New()
	if n, err := io.Copy(back, conn); err != nil || n != size {
		t.Fatalf("%d bytes came back: %v", n, err)
	}
	if got := <-received; string(got) != string(want.Sum(nil)) || string(back.Sum(nil)) != string(got) {
		t.Error("what arrived is not what was sent")
	}
}

// random is the same bytes each time.
func random(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{}), size)
}

func TestWhoIsNotReachedRefuses(t *testing.T) {
	h, _ := newHost(t, outside{})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if conn, err := h.DialContext(ctx, "tcp", world+":81"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v, %v; want connection refused", conn, err)
	}
}

func TestPacketsAreAnsweredToWhoAsked(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		packet := make([]byte, 64<<10)
		for {
			n, from, err := server.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("re: "), packet[:n]...), from)
		}
	}()
	h, _ := newHost(t, outside{"udp " + world + ":53": server.LocalAddr()})
	a, b := dialFrom(t, h, "udp", "53"), dialFrom(t, h, "udp", "53")
	for _, conn := range []net.Conn{a, b, a} {
		question := conn.LocalAddr().String()
		if _, err := conn.Write([]byte(question)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 100)
		n, err := conn.Read(answer)
		if err != nil || string(answer[:n]) != "re: "+question {
			t.Errorf("%q, %v to %s", answer[:n], err, question)
		}
	}
}

func TestCloseEndsConnectionsAndLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	gone := make(chan struct{})
	addr := listen(t, func(conn net.Conn) {
		_, _ = io.Copy(conn, conn)
		close(gone)
	})
	t.Run("gateway", func(t *testing.T) {
		h, g := newHost(t, outside{"tcp " + world + ":80": addr})
		conn := dialFrom(t, h, "tcp", "80")
		if _, err := conn.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-gone:
		case <-time.After(limit):
			t.Error("the server's connection goes on")
		}
	})
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("net.(*netFD).accept"))
}
