package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/host"
)

func TestAddressOfTheNodeIsHeldWhileNoLinkHasIt(t *testing.T) {
	inNetns(t)
	addr, other := netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")
	services := netip.MustParsePrefix("10.43.0.0/16")
	h := NewHolder([]netip.Addr{addr, other}, services, testLog(t))
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
	led := func(want bool) {
		t.Helper()
		got := run(t, "ip", "route", "get", "10.43.1.2")
		if has := strings.Contains(got, "dev lo src 192.0.2.8"); has != want {
			t.Errorf("Services are led so:\n%s", got)
		}
	}
	held("at first", addr, true)
	led(true)
	held("a second time", addr, true)
	run(t, "ip", "addr", "add", "192.0.2.8/24", "dev", "eth0")
	held("a link has it", addr, false)
	held("the other family", other, true)
	led(true)
	run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	held("there is a way out", addr, false)
	led(false)
	run(t, "ip", "addr", "flush", "dev", "eth0")
	held("the link has lost it", addr, true)
	led(true)
	run(t, "ip", "addr", "add", "2001:db8::8/64", "dev", "eth0", "nodad")
	held("the other family, by a link", other, false)
	// Nobody is shown it from outside.
	if n, err := host.ReadNetwork(); err != nil || n.DefaultRoute(false).Addr.IsValid() {
		t.Errorf("%+v, %v", n.DefaultRoute(false), err)
	}
}
