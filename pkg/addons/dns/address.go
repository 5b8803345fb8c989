package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RulesTable is the nftables table that Rules makes, in the family of the
// address: ip or ip6.
const RulesTable = "knarr-dns"

// EnsureAddress puts addr on the loopback link, where it is known to this
// machine only. It is no error when it is there already.
//
// Its scope is the host: the kernel never takes it as the source of packets
// that leave the machine.
func EnsureAddress(addr netip.Addr) error {
	lo, a, err := loopbackAddress(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("put cluster DNS address %s on the loopback link: %w", addr, err)
	}
	return nil
}

// RemoveAddress undoes EnsureAddress. It is no error when addr is not there.
func RemoveAddress(addr netip.Addr) error {
	lo, a, err := loopbackAddress(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrDel(lo, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take cluster DNS address %s off the loopback link: %w", addr, err)
	}
	return nil
}

func loopbackAddress(addr netip.Addr) (netlink.Link, *netlink.Addr, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, nil, fmt.Errorf("find the loopback link for cluster DNS address %s: %w", addr, err)
	}
	bits := addr.BitLen()
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Scope: int(netlink.SCOPE_HOST),
	}
	return lo, a, nil
}

// Rules is an nftables script that belongs to the cluster DNS address addr. It
// replaces the whole table when it is run again.
//
// Its first part keeps DNS packets out of connection tracking. kube-proxy drops
// new connections from the host to addresses of the Service network that it
// does not serve; it judges tracked packets only. (It costs less, too.) Its
// second part keeps everything else that listens on all addresses of the host,
// a secure shell for example, from being reached from pods by this address.
func Rules(addr netip.Addr) string {
	family := "ip"
	if addr.Is6() {
		family = "ip6"
	}
	return strings.NewReplacer("FAMILY", family, "TABLE", RulesTable, "ADDR", addr.String()).Replace(`
add table FAMILY TABLE
delete table FAMILY TABLE
table FAMILY TABLE {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		FAMILY daddr ADDR udp dport 53 notrack
		FAMILY daddr ADDR tcp dport 53 notrack
	}
	chain output {
		type filter hook output priority raw; policy accept;
		FAMILY daddr ADDR udp dport 53 notrack
		FAMILY daddr ADDR tcp dport 53 notrack
		FAMILY saddr ADDR udp sport 53 notrack
		FAMILY saddr ADDR tcp sport 53 notrack
	}
	chain input {
		type filter hook input priority filter; policy accept;
		iif "lo" accept
		FAMILY daddr ADDR udp dport 53 accept
		FAMILY daddr ADDR tcp dport 53 accept
		FAMILY daddr ADDR meta l4proto { icmp, icmpv6 } accept
		FAMILY daddr ADDR reject
	}
}
`)
}
