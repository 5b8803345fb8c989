package servicelb

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

// ndpConn speaks neighbour discovery (RFC 4861) on one link.
type ndpConn struct {
	conn *icmp.PacketConn
	link *net.Interface
}

const (
	targetLinkAddress = 2 // the option
	// The flags of an advertisement: it answers a question, and overrides what was
	// known before.
	flagSolicited, flagOverride = 0x40, 0x20
)

func openNDP(link *net.Interface) (neighbourConn, error) {
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("open a socket for neighbour discovery on %s: %w", link.Name, err)
	}
	c := &ndpConn{conn: conn, link: link}
	p := conn.IPv6PacketConn()
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeNeighborSolicitation)
	for _, set := range []func() error{
		func() error { return p.SetICMPFilter(&only) },
		func() error { return p.SetControlMessage(ipv6.FlagInterface, true) },
		// Others believe only what no router has passed on.
		func() error { return p.SetHopLimit(255) },
		func() error { return p.SetMulticastHopLimit(255) },
		func() error { return p.SetMulticastInterface(link) },
	} {
		if err := set(); err != nil {
			_ = conn.Close() // nothing was sent
			return nil, fmt.Errorf("set up a socket for neighbour discovery on %s: %w", link.Name, err)
		}
	}
	return c, nil
}

func (c *ndpConn) close() error { return c.conn.Close() }

// join asks for the packets to the multicast address that questions about addr
// go to.
func (c *ndpConn) join(addr netip.Addr) error {
	a := addr.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
	if err := c.conn.IPv6PacketConn().JoinGroup(c.link, &net.IPAddr{IP: group.AsSlice()}); err != nil {
		return fmt.Errorf("join %s on %s: %w", group, c.link.Name, err)
	}
	return nil
}

func (c *ndpConn) run(mine func(netip.Addr) bool) {
	buf := make([]byte, 1500)
	for {
		n, about, from, err := c.conn.IPv6PacketConn().ReadFrom(buf)
		if err != nil {
			return // it was closed
		}
		target, ok := parseSolicitation(buf[:n])
		asker, isIP := from.(*net.IPAddr)
		if !ok || !isIP || about == nil || about.IfIndex != c.link.Index || !mine(target) {
			continue
		}
		if asker.IP.IsUnspecified() { // asks whether the address is free
			_ = c.announce(target) // it is asked again if that is lost
			continue
		}
		_, _ = c.conn.WriteTo(advertisement(target, c.link.HardwareAddr, flagSolicited|flagOverride), asker)
	}
}

func (c *ndpConn) announce(addr netip.Addr) error {
	all := &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: c.link.Name}
	if _, err := c.conn.WriteTo(advertisement(addr, c.link.HardwareAddr, flagOverride), all); err != nil {
		return fmt.Errorf("announce %s: %w", addr, err)
	}
	return nil
}

// parseSolicitation is the address that a neighbour solicitation asks for.
func parseSolicitation(b []byte) (netip.Addr, bool) {
	if len(b) < 24 || b[0] != byte(ipv6.ICMPTypeNeighborSolicitation) || b[1] != 0 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b[8:24])), true
}

// advertisement writes a neighbour advertisement; the kernel adds the checksum.
func advertisement(addr netip.Addr, mac net.HardwareAddr, flags byte) []byte {
	b := []byte{byte(ipv6.ICMPTypeNeighborAdvertisement), 0, 0, 0, flags, 0, 0, 0}
	b = append(b, addr.AsSlice()...)
	b = append(b, targetLinkAddress, 1)
	return append(b, mac...)
}
