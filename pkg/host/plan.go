package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// checkPlan looks at the address plan by itself.
func (m *Machine) checkPlan(cfg Config, ps *Problems) {
	type network struct {
		flag   string
		prefix netip.Prefix
	}
	var all []network
	for _, p := range cfg.ClusterCIDR {
		all = append(all, network{"--cluster-cidr", p})
		if p.IsValid() && p.Addr().Is4() && p.Bits() > 24 {
			ps.errorf(fmt.Sprintf("%s is too small", p), "--cluster-cidr", "each node takes a /24 of it for its pods", "give at least a /24; a /16 has room for 256 nodes")
		}
	}
	for _, p := range cfg.ServiceCIDR {
		all = append(all, network{"--service-cidr", p})
		if p.IsValid() && (p.Addr().BitLen()-p.Bits() > 20 || p.Addr().BitLen()-p.Bits() < 4) {
			ps.errorf(fmt.Sprintf("%s has an unfit size", p), "--service-cidr", "the API server takes up to 20 bits of addresses and the cluster DNS is the tenth",
				"give a /12 to /28 (IPv6: /108 to /124)")
		}
	}
	for i, n := range all {
		if !n.prefix.IsValid() || n.prefix != n.prefix.Masked() {
			ps.errorf(fmt.Sprintf("%s is not a network", n.prefix), n.flag, "its address has bits beyond its length", fmt.Sprintf("write %s", n.prefix.Masked()))
			continue
		}
		for _, other := range all[:i] {
			if n.prefix.Overlaps(other.prefix) {
				ps.errorf(fmt.Sprintf("%s overlaps %s", n.prefix, other.prefix), n.flag+" and "+other.flag,
					"an address of both would lead nowhere", "choose networks that are apart")
			}
		}
		for _, ip := range cfg.NodeIPs {
			if n.prefix.Contains(ip) {
				ps.errorf(fmt.Sprintf("%s lies in %s", ip, n.prefix), "--node-ip and "+n.flag,
					"the node itself could not be reached from pods", "choose another "+n.flag)
			}
		}
	}
}

// checkNetwork compares the address plan with the machine's network.
func (m *Machine) checkNetwork(cfg Config, ps *Problems) {
	net, err := m.kernel().Network()
	if err != nil {
		ps.errorf("the machine's network can't be read", "netlink", err.Error(), "check the kernel and seccomp rules")
		return
	}
	for _, ip := range cfg.NodeIPs {
		if !slices.ContainsFunc(net.Addrs, func(a Addr) bool { return a.Prefix.Addr() == ip }) {
			ps.errorf(fmt.Sprintf("%s is no address of this machine", ip), "--node-ip", "the kubelet would refuse it", "name one that ip address shows")
		}
	}
	if f := net.defaultRoute(false); len(cfg.NodeIPs) == 0 && !f.Addr.IsValid() && !net.defaultRoute(true).Addr.IsValid() {
		ps.errorf("there is no default route", "ip route", "the node's address is taken from it", "name one with --node-ip, or wait for the network (After=network-online.target)")
	}
	ledger, err := m.OpenLedger(cfg.DataDir)
	if err != nil {
		ps.errorf("the record of host changes is damaged", cfg.DataDir, "what is Knarr's own on this machine is told by it", err.Error())
		return
	}
	warn := func(p netip.Prefix, flag, where string) {
		ps.warnf(fmt.Sprintf("%s overlaps %s", p, where), flag, "machines in that network can't be reached from pods, or pods from here", "choose another "+flag)
	}
	for flag, prefixes := range map[string][]netip.Prefix{"--cluster-cidr": cfg.ClusterCIDR, "--service-cidr": cfg.ServiceCIDR} {
		for _, p := range prefixes {
			told := map[string]bool{}
			for _, a := range net.Addrs {
				if !ownLink(ledger, a.Link) && a.Prefix.Masked().Overlaps(p) && !ledger.has(KindAddress, a.Prefix.String()+" "+a.Link) {
					told[a.Link] = true
					warn(p, flag, fmt.Sprintf("address %s on %s", a.Prefix, a.Link))
				}
			}
			for _, r := range net.Routes {
				// Flannel's host-gw puts other nodes' pods behind the machine's own link.
				theirs := cfg.FlannelBackend == "host-gw" && flag == "--cluster-cidr" && r.Gateway.IsValid() && p.Bits() < r.Dst.Bits()
				if !ownLink(ledger, r.Link) && !told[r.Link] && r.Dst.Bits() > 0 && !theirs && r.Dst.Overlaps(p) {
					warn(p, flag, fmt.Sprintf("route %s on %s", r.Dst, r.Link))
				}
			}
		}
	}
}

// ownLink tells whether a link is Knarr's, made by this run or one before: by
// the ledger, or by the names that the pod network gives.
func ownLink(ledger *Ledger, link string) bool {
	for _, prefix := range []string{"cni", "flannel", "knarr", "veth"} {
		if strings.HasPrefix(link, prefix) {
			return true
		}
	}
	return ledger.has(KindLink, link)
}
