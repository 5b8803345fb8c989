package host

import (
	"net/netip"
	"slices"
)

// loopback is the link that leads to this machine itself.
const loopback = "lo"

// Network is what a network namespace has.
type Network struct {
	Addrs  []Addr
	Routes []Route
}

// ReadNetwork tells what this process's network namespace has.
func ReadNetwork() (Network, error) { return runningKernel{}.Network() }

// Has tells whether the machine has an address that others may reach it by. One
// that EnsureLoopback has put there is none.
func (n Network) Has(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Addrs, func(a Addr) bool { return a.Prefix.Addr() == addr && !a.isHeld() })
}

// Holds tells whether an address is one that EnsureLoopback has put there.
func (n Network) Holds(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Addrs, func(a Addr) bool { return a.Prefix.Addr() == addr && a.isHeld() })
}

// IsRouters tells whether an address on the loopback link is another's work: routers
// hand out such (BGP to the host). It is not ours to remove.
func (n Network) IsRouters(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Addrs, func(a Addr) bool { return a.Prefix.Addr() == addr && a.Link == loopback && a.Global })
}

// isHeld tells such addresses from those that routers have given a machine for its
// loopback link, whose scope is the world.
func (a Addr) isHeld() bool { return a.Link == loopback && !a.Global }

// LeadsToLoopback tells whether the loopback link is where the kernel leads a range.
func (n Network) LeadsToLoopback(dst netip.Prefix) bool {
	return slices.ContainsFunc(n.Routes, func(r Route) bool { return r.Dst == dst.Masked() && r.Link == loopback })
}

// Addr is an address on a link.
type Addr struct {
	Prefix netip.Prefix
	Link   string
	// Global is set if others may use the address to reach this machine: not
	// of link or host scope, not temporary, not about to go.
	Global bool
}

// Route is one way out. A route of several next hops counts as several.
type Route struct {
	Dst     netip.Prefix
	Link    string
	Gateway netip.Addr // invalid if the destination is on the link
	Source  netip.Addr // invalid if the kernel chooses
	MTU     int        // the link's, in bytes
	Metric  int
}

// DefaultRoute is where packets to the world leave.
type DefaultRoute struct {
	Link string
	// Addr is the source address of such packets: the node's address unless
	// the user names another. Invalid if there is no default route.
	Addr    netip.Addr
	Gateway netip.Addr
	MTU     int
}

// DefaultRoute picks the default route with the lowest metric of the family. Its
// address is invalid if there is none.
func (n Network) DefaultRoute(v6 bool) DefaultRoute {
	routes := slices.DeleteFunc(slices.Clone(n.Routes), func(r Route) bool {
		return r.Dst.Bits() != 0 || r.Dst.Addr().Is6() != v6 || r.Link == ""
	})
	slices.SortStableFunc(routes, func(a, b Route) int { return a.Metric - b.Metric })
	for _, r := range routes {
		src := r.Source
		if !src.IsValid() {
			src = n.addrOn(r.Link, v6)
		}
		if !src.IsValid() {
			// Routers may hand out addresses on loopback (BGP to the host).
			src = n.addrOn(loopback, v6)
		}
		if src.IsValid() {
			return DefaultRoute{Link: r.Link, Addr: src, Gateway: r.Gateway, MTU: r.MTU}
		}
	}
	return DefaultRoute{}
}

func (n Network) addrOn(link string, v6 bool) netip.Addr {
	for _, a := range n.Addrs {
		if a.Link == link && a.Global && a.Prefix.Addr().Is6() == v6 && !a.Prefix.Addr().IsLoopback() {
			return a.Prefix.Addr()
		}
	}
	return netip.Addr{}
}
