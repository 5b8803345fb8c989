package lab

import (
	"github.com/vishvananda/netlink"
)

// Outside tells the links and routes beside the bridge of the host's lab.
func Outside(h *Host) (links, routes []string) {
	_ = withHandle(h.lab.net.ns, func(n *netlink.Handle) error {
		ls, err := n.LinkList()
		for _, l := range ls {
			links = append(links, l.Attrs().Name)
		}
		rs, _ := n.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range rs {
			routes = append(routes, r.Dst.String())
		}
		return err
	})
	return links, routes
}
