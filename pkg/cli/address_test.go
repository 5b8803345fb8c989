package cli

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
)

func TestANodeMovesOnlyWhenItsAddressIsGoneAndThereIsAnother(t *testing.T) {
	c := config.Default()
	is := func(text string) func(int) (netip.Addr, error) {
		return func(int) (netip.Addr, error) { return netip.ParseAddr(text) }
	}
	none := func(int) (netip.Addr, error) { return netip.Addr{}, errors.New("no address") }
	for _, row := range []struct {
		what, had string
		now       func(int) (netip.Addr, error)
		moves     bool
	}{
		{"its address is there", "127.0.0.1", is("192.0.2.9"), false},
		{"its address is gone", "192.0.2.8", is("192.0.2.9"), true},
		{"its address is gone, and there is none", "192.0.2.8", none, false},
		{"its address is gone, and the first is a pod bridge's", "192.0.2.8", is("10.42.0.1"), false},
		{"its address is gone, and the first is cluster DNS'", "192.0.2.8", is("10.43.0.10"), false},
	} {
		c.Node.IPs = []netip.Addr{netip.MustParseAddr(row.had)}
		if now, moves := newAddress(c, row.now); moves != row.moves {
			t.Errorf("%s: moves %v, to %s", row.what, moves, now)
		}
	}
}
