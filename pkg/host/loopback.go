package host

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureLoopback puts addr on the loopback link, where it is known to this machine
// only. It is no error when it is there already.
//
// Its scope is the host, and in IPv6, which knows no such addresses, it is
// deprecated: the kernel never takes it as the source of packets that leave the
// machine by itself.
func EnsureLoopback(addr netip.Addr) error {
	lo, a, err := loopbackAddress(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("put %s on the loopback link: %w", addr, err)
	}
	return nil
}

// RemoveLoopback undoes EnsureLoopback. It is no error when addr is not there.
func RemoveLoopback(addr netip.Addr) error {
	lo, a, err := loopbackAddress(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrDel(lo, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take %s off the loopback link: %w", addr, err)
	}
	return nil
}

// LoopbackChange is what EnsureLoopback changes.
func LoopbackChange(addr netip.Addr) Change {
	return Change{Kind: KindAddress, Name: fmt.Sprintf("%s/%d %s", addr, addr.BitLen(), loopback)}
}

// EnsureLoopbackRoute leads what this machine sends to dst, from src, to the
// loopback link. It is for the addresses of Services: they lead elsewhere by the
// packet filter, which is asked only about what has a route.
func EnsureLoopbackRoute(dst netip.Prefix, src netip.Addr) error {
	r, err := loopbackRoute(dst)
	if err != nil {
		return err
	}
	r.Src = src.AsSlice()
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("lead %s to the loopback link: %w", dst, err)
	}
	return nil
}

// RemoveLoopbackRoute undoes EnsureLoopbackRoute. It is no error when there is none.
func RemoveLoopbackRoute(dst netip.Prefix) error {
	r, err := loopbackRoute(dst)
	if err != nil {
		return err
	}
	if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("lead %s to the loopback link no more: %w", dst, err)
	}
	return nil
}

// LoopbackRouteChange is what EnsureLoopbackRoute changes.
func LoopbackRouteChange(dst netip.Prefix) Change {
	return Change{Kind: KindRoute, Name: dst.Masked().String() + " " + loopback}
}

// routeMetric is high, so that a route of the user's goes first.
const routeMetric = 32000

func loopbackRoute(dst netip.Prefix) (*netlink.Route, error) {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return nil, fmt.Errorf("find the loopback link for %s: %w", dst, err)
	}
	scope := netlink.SCOPE_LINK
	if dst.Addr().Is6() {
		scope = netlink.SCOPE_UNIVERSE // it has no other
	}
	return &netlink.Route{
		Dst:       &net.IPNet{IP: dst.Masked().Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		LinkIndex: lo.Attrs().Index, Scope: scope, Protocol: unix.RTPROT_STATIC, Priority: routeMetric,
	}, nil
}

func loopbackAddress(addr netip.Addr) (netlink.Link, *netlink.Addr, error) {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return nil, nil, fmt.Errorf("find the loopback link for %s: %w", addr, err)
	}
	bits := addr.BitLen()
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Scope: int(netlink.SCOPE_HOST),
	}
	if addr.Is6() {
		a.ValidLft, a.PreferedLft = math.MaxInt32, 0 // seconds
	}
	return lo, a, nil
}
