package network

import (
	"net/netip"
	"testing"

	"github.com/knarr-dev/knarr/pkg/host"
)

func TestAddressOfTheNodeIsHeldWhileNoLinkHasIt(t *testing.T) {
	inNetns(t)
	addr, other := netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")
	h := NewHolder([]netip.Addr{addr, other}, testLog(t))
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	run(t, "ip", "link", "set", "eth0", "up")
	held := func(what string, a netip.Addr, want bool) {
		t.Helper()
		if err := h.look(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		n, err := host.ReadNetwork()
		if err != nil {
			t.Fatal(err)
		}
		if n.Holds(a) != want || n.Has(a) == want {
			t.Errorf("%s: the loopback link has %s: %v, another has it: %v", what, a, n.Holds(a), n.Has(a))
		}
	}
	held("at first", addr, true)
	held("a second time", addr, true)
	run(t, "ip", "addr", "add", "192.0.2.8/24", "dev", "eth0")
	held("a link has it", addr, false)
	held("the other family", other, true)
	run(t, "ip", "addr", "flush", "dev", "eth0")
	held("the link has lost it", addr, true)
	run(t, "ip", "addr", "add", "2001:db8::8/64", "dev", "eth0", "nodad")
	held("the other family, by a link", other, false)
	// Nobody is shown it from outside.
	if n, err := host.ReadNetwork(); err != nil || n.DefaultRoute(false).Addr.IsValid() {
		t.Errorf("%+v, %v", n.DefaultRoute(false), err)
	}
}
