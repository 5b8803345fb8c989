package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// checker collects what is wrong with a Config.
type checker struct {
	c        *Config
	problems []error
}

// spot is the options that a problem is about, the one to change first, and
// for a list the element.
type spot struct {
	names []string
	index int
}

func at(names ...string) spot         { return spot{names: names} }
func nth(name string, index int) spot { return spot{names: []string{name}, index: index} }

// add notes a problem, unless one of the options could not even be read: that
// was told already. It is told where somebody set one of them.
func (k *checker) add(s spot, what, why, fix string) {
	where := s.names[0]
	for _, name := range slices.Backward(s.names) {
		if k.c.broken[name] {
			return
		}
		if k.c.IsSet(name) {
			where = name
		}
	}
	k.problems = append(k.problems, &Problem{Where: k.c.origin(where, s.index), What: what, Why: why, Fix: fix})
}

// choices checks every option that allows but a few values.
func (k *checker) choices() {
	for _, o := range k.c.options() {
		if len(o.Choices) == 0 {
			continue
		}
		for i, v := range o.Values(k.c) {
			if slices.Contains(o.Choices, v) {
				continue
			}
			fix := "give " + alternatives(o.Choices)
			if near := Nearest(v, o.Choices); near != "" && len(o.Choices) > 1 {
				fix = "did you mean " + near + "?"
			}
			k.add(nth(o.Name, i), strconv.Quote(v), "is not known to "+o.Name, fix)
		}
	}
}

// alternatives joins words for a sentence.
func alternatives(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func (k *checker) network() {
	n := k.c.Network
	ranges := []struct {
		name string
		cidr netip.Prefix
	}{{"cluster-cidr", n.ClusterCIDR}, {"service-cidr", n.ServiceCIDR}}
	for _, r := range ranges {
		for _, reserved := range []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"} {
			if r.cidr.Overlaps(netip.MustParsePrefix(reserved)) {
				k.add(at(r.name), r.cidr.String(), "overlaps "+reserved+", which no network may route", "give a private range")
				break
			}
		}
		for i, ip := range k.c.Node.IPs {
			if r.cidr.Contains(ip) {
				k.add(spot{[]string{r.name, "node-ip"}, i}, r.name+" "+r.cidr.String(), fmt.Sprintf("holds the node's own address %s, which would be unreachable", ip), "give another "+r.name)
			}
		}
	}
	both := at("service-cidr", "cluster-cidr")
	if n.ClusterCIDR.Addr().Is4() != n.ServiceCIDR.Addr().Is4() {
		k.add(both, "service-cidr "+n.ServiceCIDR.String(), fmt.Sprintf("is of another address family than cluster-cidr %s", n.ClusterCIDR), "give both as IPv4 or both as IPv6")
	} else if n.ClusterCIDR.Overlaps(n.ServiceCIDR) {
		k.add(both, "service-cidr "+n.ServiceCIDR.String(), fmt.Sprintf("overlaps cluster-cidr %s, so that a Service could take a pod's address", n.ClusterCIDR), "give ranges apart from each other")
	}
	k.clusterCIDR()
	k.serviceCIDR()
	if errs := validation.IsDNS1123Subdomain(n.ClusterDomain); len(errs) > 0 {
		k.add(at("cluster-domain"), strconv.Quote(n.ClusterDomain), "is not a domain name", "use lower-case letters, digits, '-' and '.', such as cluster.local")
	}
	if !k.c.Agent {
		k.nodePorts()
		k.pool()
	}
	if l := n.FlannelIface; len(l) > 15 || strings.ContainsAny(l, "/ \t") {
		k.add(at("flannel-iface"), strconv.Quote(l), "can't be a link's name", "\"ip link\" lists them")
	}
}

// clusterCIDR checks that nodes find room: controller-manager gives each of
// them a range of node-cidr-mask-size bits, at most 65,536 of them.
func (k *checker) clusterCIDR() {
	cidr, mask := k.c.Network.ClusterCIDR, 24
	if cidr.Addr().Is6() {
		mask = 64
	}
	for _, arg := range k.c.ControlPlane.ControllerManagerArgs {
		name, text, _ := strings.Cut(arg, "=")
		if bits, err := strconv.Atoi(text); err == nil && strings.HasPrefix(name, "node-cidr-mask-size") {
			mask = bits
		}
	}
	if cidr.Bits() > mask {
		k.add(at("cluster-cidr"), cidr.String(), fmt.Sprintf("has no room for one node, which gets a /%d", mask), fmt.Sprintf("give a range of /%d or larger", mask-8))
	}
	if mask-cidr.Bits() > 16 {
		k.add(at("cluster-cidr"), cidr.String(), fmt.Sprintf("is too large for Kubernetes to divide among nodes by /%d", mask), fmt.Sprintf("give a range of /%d or smaller", mask-16))
	}
}

func (k *checker) serviceCIDR() {
	cidr, dns := k.c.Network.ServiceCIDR, k.c.Network.ClusterDNS
	if cidr.Addr().BitLen()-cidr.Bits() < 4 {
		k.add(at("service-cidr"), cidr.String(), "has fewer than 16 addresses", fmt.Sprintf("give a range of /%d or larger", cidr.Addr().BitLen()-8))
		return
	}
	if slices.Contains(k.c.Disable, "dns") {
		return // the user's own server may live anywhere
	}
	s := at("cluster-dns", "service-cidr")
	switch {
	case !cidr.Contains(dns):
		k.add(s, "cluster-dns "+dns.String(), "lies outside of service-cidr "+cidr.String(), "leave cluster-dns out, or give an address inside, such as "+nthAddr(cidr, 10).String())
	case dns == cidr.Addr(), dns == k.c.APIServiceIP():
		k.add(s, dns.String(), "is taken: the first addresses of service-cidr are the network's and the API server's", "give a later one, such as "+nthAddr(cidr, 10).String())
	}
}

func (k *checker) nodePorts() {
	text := k.c.Network.NodePortRange
	s := at("service-node-port-range")
	from, to, dash := strings.Cut(text, "-")
	first, err1 := strconv.Atoi(strings.TrimSpace(from))
	last, err2 := strconv.Atoi(strings.TrimSpace(to))
	if !dash || err1 != nil || err2 != nil || first < 1 || last > 65535 || first > last {
		k.add(s, strconv.Quote(text), "is not a range of ports", "give the first and the last of 1 to 65535, such as 30000-32767")
		return
	}
	if port := k.c.API.Port; first <= port && port <= last {
		k.add(at("service-node-port-range", "https-listen-port"), "service-node-port-range "+text, fmt.Sprintf("holds port %d of the API server, which a Service could take", port), "move one of them")
	}
}

// pool checks each range of the load balancer's by itself, and then all together.
func (k *checker) pool() {
	for i, text := range k.c.Network.ServiceLBPool {
		if _, err := addressRange(text); err != nil {
			k.add(nth("servicelb-pool", i), strconv.Quote(text), err.Error(), "give the first and the last address, such as 192.0.2.10-192.0.2.20")
			return
		}
	}
	addrs, err := k.c.Network.LoadBalancerPool()
	if err != nil {
		k.add(at("servicelb-pool"), strings.Join(k.c.Network.ServiceLBPool, ","), err.Error(), "give fewer")
		return
	}
	for _, addr := range addrs {
		for _, taken := range []netip.Prefix{k.c.Network.ClusterCIDR, k.c.Network.ServiceCIDR} {
			if taken.Contains(addr) {
				k.add(at("servicelb-pool"), addr.String(), "lies in "+taken.String()+", which is the cluster's own", "give addresses of the nodes' network that nobody has")
				return
			}
		}
		if slices.Contains(k.c.Node.IPs, addr) {
			k.add(at("servicelb-pool"), addr.String(), "is this node's own address", "leave it out")
			return
		}
	}
}

func (k *checker) api() {
	a := k.c.API
	if free := a.Port == 0 && k.c.ControlPlaneOnly; !free && (a.Port < 1 || a.Port > 65535) {
		k.add(at("https-listen-port"), strconv.Itoa(a.Port), "is not a port", "give one of 1 to 65535")
	}
	if a.BindAddress.IsLoopback() && !k.c.DisableAgent {
		k.add(at("bind-address"), a.BindAddress.String(), "is loopback, where pods can't reach the API server", "give an address of the node, or 0.0.0.0")
	}
	if l := k.c.LeafLifetime; k.c.IsSet("leaf-lifetime") && l < 10*time.Second {
		k.add(at("leaf-lifetime"), l.String(), "is too short for certificates to be renewed in time", "give ten seconds or more, such as 2160h")
	}
	// A missing one means that the node's address is missing, and one of the
	// node's was checked there.
	if ad := a.AdvertiseAddress; ad.IsValid() && !ad.IsGlobalUnicast() && !slices.Contains(k.c.Node.IPs, ad) {
		k.add(at("advertise-address", "bind-address"), ad.String(), "is no address that others can reach", "give one of the node's addresses")
	}
	for i, san := range a.TLSSANs {
		_, err := netip.ParseAddr(san)
		if err != nil && len(validation.IsDNS1123Subdomain(san)) > 0 && len(validation.IsWildcardDNS1123Subdomain(san)) > 0 {
			k.add(nth("tls-san", i), strconv.Quote(san), "is neither an address nor a DNS name", "give it without scheme and port, such as k8s.example.org")
		}
	}
}

func (k *checker) kubeconfig(h Host) {
	kc := k.c.Kubeconfig
	if kc.Mode > 0o777 || kc.Mode&0o400 == 0 {
		k.add(at("write-kubeconfig-mode"), fmt.Sprintf("%04o", kc.Mode), "are not permission bits that let the owner read", "give one such as 0600 or 0640")
	}
	if kc.Group != "" && !h.HasGroup(kc.Group) {
		k.add(at("write-kubeconfig-group"), strconv.Quote(kc.Group), "is not a group of this machine", "create it (groupadd "+kc.Group+") or give another")
	}
}
