package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// network is one of the address plan's.
type network struct {
	flag   string
	prefix netip.Prefix
}

func (s *survey) networks() []network {
	var all []network
	for _, p := range s.cfg.ClusterCIDR {
		all = append(all, network{"--cluster-cidr", p})
	}
	for _, p := range s.cfg.ServiceCIDR {
		all = append(all, network{"--service-cidr", p})
	}
	return all
}

// checkPlan looks at the address plan by itself.
func (s *survey) checkPlan(f *findings) string {
	all := s.networks()
	var names []string
	for i, n := range all {
		names = append(names, n.prefix.String())
		if !n.prefix.IsValid() || n.prefix != n.prefix.Masked() {
			f.errorf(fmt.Sprintf("%s is not a network", n.prefix), n.flag, "its address has bits beyond its length", fmt.Sprintf("write %s", n.prefix.Masked()))
			continue
		}
		checkSize(f, n)
		for _, other := range all[:i] {
			if n.prefix.Overlaps(other.prefix) {
				f.errorf(fmt.Sprintf("%s overlaps %s", n.prefix, other.prefix), n.flag+" and "+other.flag,
					"an address of both would lead nowhere", "choose networks that are apart")
			}
		}
		for _, ip := range s.cfg.NodeIPs {
			if n.prefix.Contains(ip) {
				f.errorf(fmt.Sprintf("%s lies in %s", ip, n.prefix), "--node-ip and "+n.flag,
					"the node itself could not be reached from pods", "choose another "+n.flag)
			}
		}
	}
	return strings.Join(names, ", ") + " are apart"
}

func checkSize(f *findings, n network) {
	bits := n.prefix.Addr().BitLen() - n.prefix.Bits()
	if n.flag == "--cluster-cidr" && n.prefix.Addr().Is4() && n.prefix.Bits() > 24 {
		f.errorf(fmt.Sprintf("%s is too small", n.prefix), n.flag, "each node takes a /24 of it for its pods", "give at least a /24; a /16 has room for 256 nodes")
	}
	if n.flag == "--service-cidr" && (bits > 20 || bits < 4) {
		f.errorf(fmt.Sprintf("%s has an unfit size", n.prefix), n.flag, "the API server takes up to 20 bits of addresses and the cluster DNS is the tenth",
			"give a /12 to /28 (IPv6: /108 to /124)")
	}
}

// checkNodeAddress looks for the address that the node is to have.
func (s *survey) checkNodeAddress(f *findings) string {
	net, err := s.net()
	if err != nil {
		f.errorf("the machine's network can't be read", "netlink", err.Error(), "check the kernel and seccomp rules")
		return ""
	}
	var names []string
	for _, ip := range s.cfg.NodeIPs {
		names = append(names, ip.String())
		if !s.cfg.NodeIPsHeld && !slices.ContainsFunc(net.Addrs, func(a Addr) bool { return a.Prefix.Addr() == ip }) {
			f.errorf(fmt.Sprintf("%s is no address of this machine", ip), "--node-ip", "the kubelet would refuse it", "name one that ip address shows")
		}
	}
	if s.cfg.NodeIPsHeld {
		names = append(names, "as at the last start: the machine has no network now")
	}
	if len(names) > 0 {
		return strings.Join(names, ", ")
	}
	for _, v6 := range []bool{false, true} {
		if r := net.DefaultRoute(v6); r.Addr.IsValid() {
			return fmt.Sprintf("%s, by which the default route on %s sends", r.Addr, r.Link)
		}
	}
	f.errorf("there is no default route", "ip route", "the node's address is taken from it", "name one with --node-ip, or wait for the network (After=network-online.target)")
	return ""
}

// checkRoutes compares the address plan with where the machine's packets go.
func (s *survey) checkRoutes(f *findings) string {
	net, err := s.net()
	if err != nil {
		return "" // told by node-address
	}
	ledger, err := s.ledger()
	if err != nil {
		f.errorf("the record of host changes is damaged", s.cfg.DataDir, "what is Knarr's own on this machine is told by it", err.Error())
		return ""
	}
	for _, n := range s.networks() {
		warn := func(where string) {
			f.warnf(fmt.Sprintf("%s overlaps %s", n.prefix, where), n.flag, "machines in that network can't be reached from pods, or pods from here", "choose another "+n.flag)
		}
		told := map[string]bool{}
		for _, a := range net.Addrs {
			if !ownLink(ledger, a.Link) && a.Prefix.Masked().Overlaps(n.prefix) && !ledger.has(KindAddress, a.Prefix.String()+" "+a.Link) {
				told[a.Link] = true
				warn(fmt.Sprintf("address %s on %s", a.Prefix, a.Link))
			}
		}
		for _, r := range net.Routes {
			// Flannel's host-gw puts other nodes' pods behind the machine's own link.
			own := s.cfg.FlannelBackend == "host-gw" && n.flag == "--cluster-cidr" && r.Gateway.IsValid() && n.prefix.Bits() < r.Dst.Bits()
			own = own || ledger.has(KindRoute, r.Dst.String()+" "+r.Link)
			if !ownLink(ledger, r.Link) && !told[r.Link] && r.Dst.Bits() > 0 && !own && r.Dst.Overlaps(n.prefix) {
				warn(fmt.Sprintf("route %s on %s", r.Dst, r.Link))
			}
		}
	}
	return "no route of this machine leads into the cluster's networks"
}

// checkResolvConf looks at the name servers that pods and cluster DNS will ask.
func (s *survey) checkResolvConf(f *findings) string {
	const do = "name the real servers in a file and give it with --resolv-conf"
	path := s.cfg.ResolvConf
	if path == "" {
		f.warnf("there is no resolv.conf", "/etc/resolv.conf", "pods can't look up names of the world", do)
		return ""
	}
	var names []string
	usable := 0
	for _, server := range s.nameservers(path) {
		names = append(names, server.String())
		inside := server == s.cfg.ClusterDNS
		for _, n := range s.networks() {
			inside = inside || n.prefix.Contains(server)
		}
		switch {
		case inside:
			f.warnf(server.String()+" is an address of the cluster's", path, "cluster DNS would ask itself for ever, which it refuses", do)
		case !server.IsLoopback() && !server.IsUnspecified():
			usable++
		}
	}
	if usable == 0 && len(f.results) == 0 {
		what := "resolv.conf names no server"
		if len(names) > 0 {
			what = "resolv.conf names only loopback (" + strings.Join(names, ", ") + ")"
		}
		f.warnf(what, path, "in a pod that is the pod itself, so that names of the world are not found", do)
	}
	return path + " names " + strings.Join(names, ", ")
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
