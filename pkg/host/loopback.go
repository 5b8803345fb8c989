package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureLoopback puts addr on the loopback link, where it is known to this machine
// only. It is no error when it is there already.
//
// Its scope is the host: the kernel never takes it as the source of packets
// that leave the machine.
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

func loopbackAddress(addr netip.Addr) (netlink.Link, *netlink.Addr, error) {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return nil, nil, fmt.Errorf("find the loopback link for %s: %w", addr, err)
	}
	bits := addr.BitLen()
	return lo, &netlink.Addr{
		IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Scope: int(netlink.SCOPE_HOST),
	}, nil
}
