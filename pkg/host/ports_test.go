package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHolderOfAPortIsFound(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	defer udp.Close()
	s := new(Machine).survey(Config{DataDir: t.TempDir()})
	for _, l := range []Listener{
		{Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), tcp.Addr().(*net.TCPAddr).AddrPort().Port())},
		{Network: "udp", Addr: udp.LocalAddr().(*net.UDPAddr).AddrPort()},
	} {
		if err := (runningKernel{}).Bind(l.Network, l.Addr); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v, want that it is in use", l, err)
		}
		if pid := s.ownerOf(s.sockets(l)); pid != os.Getpid() {
			t.Errorf("%s seems to be held by process %d, want %d", l, pid, os.Getpid())
		}
		if holder, ok := s.portHolder(l); ok {
			t.Errorf("%s: our own socket is told of as %s's", l, holder)
		}
	}
	// An address that no link has, as cluster DNS' before the first start.
	free := netip.MustParseAddrPort("198.51.100.7:53535")
	for _, network := range []string{"tcp", "udp"} {
		if err := (runningKernel{}).Bind(network, free); err != nil {
			t.Errorf("%s/%s: %v", free, network, err)
		}
	}
}
