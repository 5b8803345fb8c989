package host

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
)

func TestListeningTellsWhatIsInTheWayOfAnAddress(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 010200C0:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 020200C0:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
   4: 010200C0:C000 030200C0:0050 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
nonsense
`
	found := map[uint16]bool{}
	listening(found, "tcp", text, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
	// Everywhere, and at the address; not on loopback, elsewhere, or a connection.
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []uint16{22, 443}) {
		t.Errorf("ports %v", got)
	}
}

func TestListeningSeesOwnSockets(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	udp := p.LocalAddr().(*net.UDPAddr).AddrPort()
	if port := uint16(l.Addr().(*net.TCPAddr).Port); !Listening("tcp", nil)[port] {
		t.Errorf("tcp port %d is not found", port)
	}
	if Listening("udp", nil)[udp.Port()] || !Listening("udp", []netip.Addr{udp.Addr()})[udp.Port()] {
		t.Errorf("udp port %v is found where it is not, or not where it is", udp)
	}
}
