package network

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNetns puts the rest of the test on a thread in a network namespace of its
// own, which ends with the thread.
func inNetns(t *testing.T) netns.NsHandle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	// Never unlocked, so that the runtime ends the thread with the goroutine.
	runtime.LockOSThread()
	return newNetns(t)
}

// newNetns makes a network namespace and leaves the locked thread in it.
func newNetns(t *testing.T) netns.NsHandle {
	t.Helper()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	ns := must[netns.NsHandle](t)(netns.Get())
	t.Cleanup(func() { ns.Close() })
	run(t, "ip", "link", "set", "lo", "up")
	return ns
}

// enter moves the locked thread.
func enter(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

// pathOf is a name of the namespace that other processes can open.
func pathOf(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns)) }

// run runs a program in the thread's namespace.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// serve answers each client at the address with the address that it sees of it.
func serve(t *testing.T, addr string) {
	t.Helper()
	l := must[net.Listener](t)(net.Listen("tcp", addr))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(host))
			c.Close()
		}
	}()
}

// ask returns what serve answers.
func ask(t *testing.T, addr string) string {
	t.Helper()
	c := must[net.Conn](t)(net.Dial("tcp", addr))
	defer c.Close()
	answer := make([]byte, 64)
	n, err := c.Read(answer)
	if err != nil {
		t.Fatalf("read from %s: %v", addr, err)
	}
	return string(answer[:n])
}

// linkUp gives a link an address and brings it up.
func linkUp(t *testing.T, h *netlink.Handle, name, addr string) {
	t.Helper()
	l := must[netlink.Link](t)(h.LinkByName(name))
	a := must[*netlink.Addr](t)(netlink.ParseAddr(addr))
	// An IPv6 address would be of no use for the first second.
	a.Flags = unix.IFA_F_NODAD
	if err := h.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
