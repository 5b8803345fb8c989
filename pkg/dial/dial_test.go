package dial

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pair connects to a listener on loopback.
func pair(t *testing.T, d *net.Dialer, lc *net.ListenConfig) (client, server net.Conn) {
	t.Helper()
	lis, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := lis.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	if client, err = d.Dial("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func option(t *testing.T, c net.Conn, level, name int) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = unix.GetsockoptInt(int(fd), level, name) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value
}

func TestSocketsAreSetToNoticeSilence(t *testing.T) {
	client, server := pair(t, Dialer(), ListenConfig())
	for _, c := range []struct {
		what                         string
		level, name, dialed, listens int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 6, 6},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 3, 3},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3, 3},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15000, 0},
	} {
		if got := option(t, client, c.level, c.name); got != c.dialed {
			t.Errorf("%s of a dialled connection is %d, want %d", c.what, got, c.dialed)
		}
		if got := option(t, server, c.level, c.name); got != c.listens {
			t.Errorf("%s of an accepted connection is %d, want %d", c.what, got, c.listens)
		}
	}
}

// With seconds in place of the real times.
func TestPartitionIsNoticed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network of its own")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its network
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network: %v", err)
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Errorf("loopback link up: %v", err)
			return
		}
		probes := net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}
		idle, _ := pair(t, dialer(probes, 2*time.Second), ListenConfig())
		busy, _ := pair(t, dialer(probes, 2*time.Second), ListenConfig())
		if err := netlink.LinkSetDown(lo); err != nil {
			t.Errorf("loopback link down: %v", err)
			return
		}
		start := time.Now()
		busy.Write([]byte("owed an acknowledgement"))
		for name, c := range map[string]net.Conn{"idle": idle, "busy": busy} {
			c.SetReadDeadline(start.Add(8 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("the %s connection ends with %v after %s", name, err, time.Since(start))
			}
		}
	}()
	<-done
}

func TestHeardTellsHowLongThePeerWasSilent(t *testing.T) {
	client, server := pair(t, Dialer(), ListenConfig())
	time.Sleep(50 * time.Millisecond) // by the kernel's clock
	wrapped := tls.Client(client, &tls.Config{})
	silent, ok := Heard(wrapped)
	if !ok || silent < 30*time.Millisecond {
		t.Errorf("heard %s ago (%t), want about 50ms", silent, ok)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if now, ok := Heard(wrapped); !ok || now >= silent {
		t.Errorf("heard %s ago (%t) right after data, %s ago before", now, ok, silent)
	}
	client.Close()
	if _, ok := Heard(client); ok {
		t.Error("a closed connection is heard")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok := Heard(a); ok {
		t.Error("a pipe is heard")
	}
}

func TestResetIsToldFromTheEndOfData(t *testing.T) {
	client, server := pair(t, Dialer(), ListenConfig())
	if Gone(client) {
		t.Error("an open connection is gone")
	}
	server.(*net.TCPConn).CloseWrite()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF || Gone(client) {
		t.Errorf("after the end of data: %v, gone: %t", err, Gone(client))
	}

	client, server = pair(t, Dialer(), ListenConfig())
	server.(*net.TCPConn).SetLinger(0)
	server.Close()
	var err error
	for err == nil {
		_, err = client.Write([]byte("x"))
	}
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a Read after a Write that met the reset: %v (then Gone has no use any more)", err)
	}
	if !Gone(client) {
		t.Error("a connection that was reset is not gone")
	}
}

func TestOtherNetworksAreDialledToo(t *testing.T) {
	path := t.TempDir() + "/s"
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	c, err := Dialer().Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
