// Package network connects pods: to the node by a bridge, to the world by rules
// of the packet filter, and to the pods of other nodes by flannel.
//
// Its parts stand alone. CNI writes the configuration that containerd hands to
// the CNI plugins. Subnet knows which addresses this node's pods get, as early
// as possible, and follows when the cluster decides otherwise. Rules keeps one
// table of the packet filter, which may be made again at any time. Flannel
// connects the nodes.
//
// All of it works on the network namespace of the calling process, and for one
// address family: that of the cluster's CIDR.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// BridgeName is the link that the node's pods hang on.
	BridgeName = "cni0"

	// BackendVXLAN wraps packets between nodes in UDP, so that it works over any
	// network.
	BackendVXLAN = "vxlan"
	// BackendHostGW routes between nodes, which must share a link.
	BackendHostGW = "host-gw"
)

// OverlayName is flannel's vxlan link, which flannel itself names.
func OverlayName(v6 bool) string {
	if v6 {
		return "flannel-v6.1"
	}
	return "flannel.1"
}

// errNoWayOut is for a machine without a network.
var errNoWayOut = errors.New("no default route")

// Link is where the node's packets leave for other nodes.
type Link struct {
	Name  string
	Index int
	MTU   int // bytes
	// Addr is the node's address, by which other nodes reach it.
	Addr netip.Addr
}

// ExternalLink finds the link that leads to the other nodes: the one named
// iface; with an empty name the one that holds the node's address; where that
// is the loopback link, or has no such address, the default route's.
func ExternalLink(iface string, nodeIP netip.Addr) (Link, error) {
	if iface != "" {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return Link{}, fmt.Errorf("find link %s of --flannel-iface: %w", iface, err)
		}
		addr, err := addrOn(l, nodeIP)
		if err != nil {
			return Link{}, err
		}
		return newLink(l, addr), nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return Link{}, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if addr, err := addrOn(l, nodeIP); err == nil && addr == nodeIP {
			return newLink(l, addr), nil
		}
	}
	if l := defaultRouteLink(family(nodeIP)); l != nil {
		return newLink(l, nodeIP), nil
	}
	return Link{}, fmt.Errorf("no link holds the node's address %s and there is %w: name a link with --flannel-iface", nodeIP, errNoWayOut)
}

func newLink(l netlink.Link, addr netip.Addr) Link {
	a := l.Attrs()
	return Link{Name: a.Name, Index: a.Index, MTU: a.MTU, Addr: addr}
}

// addrOn returns the wanted address if the link has it, else the link's first
// of the same family that others can reach.
func addrOn(l netlink.Link, want netip.Addr) (netip.Addr, error) {
	addrs, err := netlink.AddrList(l, family(want))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of link %s: %w", l.Attrs().Name, err)
	}
	var first netip.Addr
	for _, a := range addrs {
		switch addr := fromIP(a.IP); {
		case addr == want:
			return addr, nil
		case !first.IsValid() && addr.IsGlobalUnicast():
			first = addr
		}
	}
	if !first.IsValid() {
		return first, fmt.Errorf("link %s has no address of the family of the node's, %s", l.Attrs().Name, want)
	}
	return first, nil
}

func defaultRouteLink(family int) netlink.Link {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
	if err != nil {
		return nil
	}
	var best *netlink.Route
	for i, r := range routes {
		if r.LinkIndex != 0 && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	if best == nil {
		return nil
	}
	l, err := netlink.LinkByIndex(best.LinkIndex)
	if err != nil {
		return nil
	}
	return l
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// overhead is how many bytes a backend takes from each packet between nodes.
func overhead(backend string, v6 bool) int {
	switch {
	case backend != BackendVXLAN:
		return 0
	case v6:
		return 70
	}
	return 50
}

// ensureNoBridge removes the bridge if it has an address outside of the subnet
// and no pod hangs on it: the plugin makes it again. It returns the number of
// pods that keep a wrong bridge.
func ensureNoBridge(name string, subnet netip.Prefix) (pods int, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for bridge %s: %w", name, err)
	}
	addrs, err := netlink.AddrList(link, family(subnet.Addr()))
	if err != nil {
		return 0, fmt.Errorf("list addresses of bridge %s: %w", name, err)
	}
	wrong := false
	for _, a := range addrs {
		addr := fromIP(a.IP)
		wrong = wrong || !addr.IsLinkLocalUnicast() && !subnet.Contains(addr)
	}
	if !wrong {
		return 0, nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list links on bridge %s: %w", name, err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			pods++
		}
	}
	if pods > 0 {
		return pods, nil
	}
	if err := netlink.LinkDel(link); err != nil {
		return 0, fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return 0, nil
}
