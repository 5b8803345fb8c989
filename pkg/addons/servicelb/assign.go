package servicelb

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// world is all that Services' addresses follow from.
type world struct {
	services []*corev1.Service
	nodes    []*corev1.Node
	// local are the nodes with ready endpoints of a Service.
	local func(*corev1.Service) map[string]bool
	// taken are, by a node's name, the ports that something on the machine listens
	// on; reserved are those that Knarr keeps for itself on all of them.
	taken    map[string]map[Port]bool
	reserved map[Port]string
	pool     []netip.Addr
	// announcers are the nodes that answer for the pool's addresses: one for each,
	// that the oldest Service there decides on.
	announcers map[netip.Addr]string
}

// decision is what one Service gets.
type decision struct {
	ingress []corev1.LoadBalancerIngress
	// announcer is the node that answers for an address of the pool.
	announcer string
	// complaint is why the Service does not get all that it asked for, and reason
	// the same in one word.
	complaint, reason string
}

// slot is what only one Service can have.
type slot struct {
	addr netip.Addr
	port Port
}

// assign decides for all Services at once, in the order of world.services. It
// sorts them: of two Services that want the same, the older one gets it.
func (w *world) assign() []decision {
	slices.SortFunc(w.services, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	slices.SortFunc(w.nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	marked := slices.ContainsFunc(w.nodes, func(n *corev1.Node) bool { return n.Labels[EnableLabel] == "true" })
	owners := map[slot]string{}
	decisions := make([]decision, len(w.services))
	// Those that have an address of the pool keep it, whoever is older.
	held := w.held()
	w.announcers = map[netip.Addr]string{}
	for i, s := range w.services {
		nodes := w.eligible(s, marked)
		if len(w.pool) > 0 {
			decisions[i] = w.fromPool(s, nodes, owners, held)
		} else {
			decisions[i] = w.fromNodes(s, nodes, owners)
		}
		if len(nodes) == 0 && w.anyReady() && decisions[i].complaint == "" {
			decisions[i].reason, decisions[i].complaint = reasonNode, fmt.Sprintf("no node may serve it: a node has to be ready, without the label %s, with %s=true if any node has that, and with the Service's own value of %s if it has one",
				corev1.LabelNodeExcludeBalancers, EnableLabel, PoolLabel)
		}
	}
	return decisions
}

func (w *world) anyReady() bool {
	return slices.ContainsFunc(w.nodes, func(n *corev1.Node) bool { return readiness(n) == corev1.ConditionTrue })
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// serves tells whether a node is well enough for a Service. One that says itself
// that it is not ready, as each does for a moment when Knarr restarts, goes on
// forwarding: it keeps what it has. One that says nothing any more does not.
func serves(n *corev1.Node, s *corev1.Service) bool {
	switch readiness(n) {
	case corev1.ConditionTrue:
		return true
	case corev1.ConditionFalse:
		return s.Annotations[AnnouncerAnnotation] == n.Name || slices.ContainsFunc(addresses(n, s), func(a address) bool {
			return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool { return in.IP == a.String() })
		})
	}
	return false
}

// eligible are the nodes that may serve a Service, whether they have endpoints or
// not. A node that is cordoned still forwards, and stays.
func (w *world) eligible(s *corev1.Service, marked bool) []*corev1.Node {
	var list []*corev1.Node
	for _, n := range w.nodes {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		leaving := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == autoscalerTaint })
		switch {
		case !serves(n, s), excluded, leaving:
		case marked && n.Labels[EnableLabel] != "true":
		case s.Labels[PoolLabel] != "" && n.Labels[PoolLabel] != s.Labels[PoolLabel]:
		default:
			list = append(list, n)
		}
	}
	return list
}

// withEndpoints leaves those that may answer: all, unless only those that have
// endpoints may.
func (w *world) withEndpoints(s *corev1.Service, nodes []*corev1.Node) []*corev1.Node {
	if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return nodes
	}
	local := w.local(s)
	var list []*corev1.Node
	for _, n := range nodes {
		if local[n.Name] {
			list = append(list, n)
		}
	}
	return list
}

// fromNodes gives a Service the addresses of nodes on which all of its ports are
// free. The ports of nodes without endpoints are its own too: they may get some.
func (w *world) fromNodes(s *corev1.Service, nodes []*corev1.Node, owners map[slot]string) decision {
	var refusals []string
	free := map[string]bool{}
	for _, n := range nodes {
		why := w.refusal(s, n, owners)
		if why == "" {
			free[n.Name] = true
		} else if !slices.Contains(refusals, why) {
			refusals = append(refusals, why)
		}
	}
	for _, n := range nodes {
		if !free[n.Name] {
			continue
		}
		for _, addr := range addresses(n, s) {
			for _, p := range s.Spec.Ports {
				owners[slot{addr.Addr, portOf(p)}] = s.Namespace + "/" + s.Name
			}
		}
	}
	var external, internal []netip.Addr
	for _, n := range w.withEndpoints(s, nodes) {
		if !free[n.Name] {
			continue
		}
		for _, addr := range addresses(n, s) {
			if addr.external {
				external = append(external, addr.Addr)
			} else {
				internal = append(internal, addr.Addr)
			}
		}
	}
	d := decision{ingress: ingress(append(external, internal...))}
	named := func(n *corev1.Node) bool { return len(addresses(n, s)) > 0 }
	switch {
	case len(refusals) > 0:
		d.reason, d.complaint = reasonPort, strings.Join(refusals, "; ")
	case s.Spec.LoadBalancerIP != "" && len(nodes) > 0 && !slices.ContainsFunc(nodes, named):
		d.reason, d.complaint = reasonNode, fmt.Sprintf("loadBalancerIP %s is not an address of a node that may serve it", s.Spec.LoadBalancerIP)
	}
	return d
}

// refusal is why a Service can't have its ports on a node; empty if it can.
func (w *world) refusal(s *corev1.Service, n *corev1.Node, owners map[slot]string) string {
	for _, sp := range s.Spec.Ports {
		p := portOf(sp)
		if use := w.reserved[p]; use != "" {
			return fmt.Sprintf("port %s belongs to %s; give the Service another one", p, use)
		}
		if w.taken[n.Name][p] {
			return fmt.Sprintf("port %s: something on node %s listens there already; stop it or give the Service another port", p, n.Name)
		}
		for _, addr := range addresses(n, s) {
			if owner := owners[slot{addr.Addr, p}]; owner != "" {
				return fmt.Sprintf("port %s: Service %s has it on node %s; give this one another port, or nodes of its own by the label %s", p, owner, n.Name, PoolLabel)
			}
		}
	}
	return ""
}

// address is one of a node's.
type address struct {
	netip.Addr
	external bool
}

// addresses are those of a node that a Service can have: of its families, and the
// one it names if it names one.
func addresses(n *corev1.Node, s *corev1.Service) []address {
	var list []address
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || a.Type != corev1.NodeExternalIP && a.Type != corev1.NodeInternalIP || !fits(addr, s) {
			continue
		}
		if s.Spec.LoadBalancerIP != "" && addr.String() != s.Spec.LoadBalancerIP {
			continue
		}
		list = append(list, address{addr, a.Type == corev1.NodeExternalIP})
	}
	return list
}

// fits tells whether an address is of one of the Service's families.
func fits(addr netip.Addr, s *corev1.Service) bool {
	family := corev1.IPv4Protocol
	if addr.Is6() {
		family = corev1.IPv6Protocol
	}
	return len(s.Spec.IPFamilies) == 0 || slices.Contains(s.Spec.IPFamilies, family)
}

// ingress publishes addresses, each once, to be served by kube-proxy on the way.
func ingress(addrs []netip.Addr) []corev1.LoadBalancerIngress {
	var list []corev1.LoadBalancerIngress
	for i, addr := range addrs {
		if slices.Index(addrs, addr) == i {
			list = append(list, corev1.LoadBalancerIngress{IP: addr.String(), IPMode: new(corev1.LoadBalancerIPModeVIP)})
		}
	}
	return list
}

// held are the pool's addresses that Services have, with the first of them that
// does.
func (w *world) held() map[netip.Addr]*corev1.Service {
	held := map[netip.Addr]*corev1.Service{}
	for _, s := range w.services {
		if addr, ok := w.holds(s); ok && held[addr] == nil {
			held[addr] = s
		}
	}
	return held
}

// holds is the address of the pool that a Service has and may keep.
func (w *world) holds(s *corev1.Service) (netip.Addr, bool) {
	for _, in := range s.Status.LoadBalancer.Ingress {
		addr, err := netip.ParseAddr(in.IP)
		if err == nil && slices.Contains(w.pool, addr) && fits(addr, s) && (s.Spec.LoadBalancerIP == "" || s.Spec.LoadBalancerIP == in.IP) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// fromPool gives a Service an address of the pool: the one it has, the one it
// names, or the first that nobody has.
func (w *world) fromPool(s *corev1.Service, nodes []*corev1.Node, owners map[slot]string, held map[netip.Addr]*corev1.Service) decision {
	addr, ok := w.holds(s)
	if ok && held[addr] != s && s.Spec.LoadBalancerIP == "" {
		ok = false // two have it, of which this one is younger
	}
	if !ok {
		for _, a := range w.pool {
			if s.Spec.LoadBalancerIP == "" && held[a] == nil && fits(a, s) || s.Spec.LoadBalancerIP == a.String() {
				addr, ok = a, true
				break
			}
		}
	}
	if !ok && s.Spec.LoadBalancerIP != "" {
		return decision{reason: reasonPool, complaint: fmt.Sprintf("loadBalancerIP %s is not in the pool (--servicelb-pool)", s.Spec.LoadBalancerIP)}
	}
	if !ok {
		return decision{reason: reasonPool, complaint: "every address of the pool (--servicelb-pool) is taken; add some, or have two Services share one with different ports by the same loadBalancerIP"}
	}
	for _, sp := range s.Spec.Ports {
		if owner := owners[slot{addr, portOf(sp)}]; owner != "" {
			return decision{reason: reasonPort, complaint: fmt.Sprintf("port %s: Service %s has it at %s; give this one another port or address", portOf(sp), owner, addr)}
		}
	}
	for _, sp := range s.Spec.Ports {
		owners[slot{addr, portOf(sp)}] = s.Namespace + "/" + s.Name
	}
	if held[addr] == nil {
		held[addr] = s
	}
	// The address stays while nobody can answer for it.
	d := decision{ingress: ingress([]netip.Addr{addr}), announcer: w.announcers[addr]}
	if able := w.withEndpoints(s, nodes); d.announcer == "" && len(able) > 0 {
		d.announcer = announcer(addr, s, able).Name
		w.announcers[addr] = d.announcer
	}
	return d
}

// announcer is the node that answers for an address: the one that does already
// while it can, else by a hash, so that many addresses are spread.
func announcer(addr netip.Addr, s *corev1.Service, nodes []*corev1.Node) *corev1.Node {
	var best *corev1.Node
	var most uint64
	for _, n := range nodes {
		if n.Name == s.Annotations[AnnouncerAnnotation] {
			return n
		}
		h := fnv.New64a()
		fmt.Fprint(h, addr, n.Name)
		if sum := h.Sum64(); best == nil || sum > most {
			best, most = n, sum
		}
	}
	return best
}
