package servicelb

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name, ip string, edit ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: ip}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, e := range edit {
		e(n)
	}
	return n
}

func nodeLabel(k, v string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[k] = v }
}

func nodeAddr(t corev1.NodeAddressType, ip string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: t, Address: ip})
	}
}

func notReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }

func saysNotReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }

// service is older, the lower its age.
func service(name string, age int, port int32, edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{}, CreationTimestamp: metav1.Unix(int64(age), 0)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: port}},
		},
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}
func udp(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }
func pooled(v string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Labels[PoolLabel] = v }
}
func asks(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerIP = ip }
}
func has(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = ingress([]netip.Addr{netip.MustParseAddr(ip)})
	}
}
func by(node string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{AnnouncerAnnotation: node} }
}

func TestServicesGetTheAddressesOfEligibleNodes(t *testing.T) {
	a, b := node("a", "192.0.2.1"), node("b", "192.0.2.2")
	for _, c := range []struct {
		name     string
		nodes    []*corev1.Node
		services []*corev1.Service
		taken    map[string]map[Port]bool
		pool     []string
		// want has for each Service its addresses and, in brackets, a part of the
		// complaint.
		want map[string]string
	}{
		{"all nodes", []*corev1.Node{b, a}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.1 192.0.2.2"}},
		{"ready nodes only", []*corev1.Node{a, node("b", "192.0.2.2", notReady)}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.1"}},
		{"no complaint before a node is ready", []*corev1.Node{node("b", "192.0.2.2", notReady)}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": ""}},
		{"one that says it is not ready keeps what it has", []*corev1.Node{a, node("b", "192.0.2.2", saysNotReady)}, []*corev1.Service{service("kept", 1, 80, has("192.0.2.2")), service("new", 2, 81)}, nil, nil,
			map[string]string{"kept": "192.0.2.1 192.0.2.2", "new": "192.0.2.1"}},
		{"one that says nothing does not", []*corev1.Node{a, node("b", "192.0.2.2", notReady)}, []*corev1.Service{service("s", 1, 80, has("192.0.2.2"))}, nil, nil, map[string]string{"s": "192.0.2.1"}},
		{"not excluded ones", []*corev1.Node{a, node("b", "192.0.2.2", nodeLabel(corev1.LabelNodeExcludeBalancers, ""))}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.1"}},
		{"not leaving ones", []*corev1.Node{a, node("b", "192.0.2.2", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: autoscalerTaint}} })}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.1"}},
		{"cordoned ones too", []*corev1.Node{a, node("b", "192.0.2.2", func(n *corev1.Node) { n.Spec.Unschedulable = true })}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.1 192.0.2.2"}},
		{"enabled ones", []*corev1.Node{a, node("b", "192.0.2.2", nodeLabel(EnableLabel, "true"))}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "192.0.2.2"}},
		{"of the Service's pool", []*corev1.Node{node("a", "192.0.2.1", nodeLabel(PoolLabel, "x")), b},
			[]*corev1.Service{service("in", 1, 80, pooled("x")), service("out", 2, 81), service("lost", 3, 82, pooled("y"))}, nil, nil,
			map[string]string{"in": "192.0.2.1", "out": "192.0.2.1 192.0.2.2", "lost": "[no node may serve it]"}},
		{"external addresses first", []*corev1.Node{a, node("b", "192.0.2.2", nodeAddr(corev1.NodeExternalIP, "203.0.113.2"))}, []*corev1.Service{service("s", 1, 80)}, nil, nil, map[string]string{"s": "203.0.113.2 192.0.2.1 192.0.2.2"}},
		{"of its family", []*corev1.Node{node("a", "192.0.2.1", nodeAddr(corev1.NodeInternalIP, "2001:db8::1"))},
			[]*corev1.Service{service("four", 1, 80), service("both", 2, 81, func(s *corev1.Service) { s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPv6Protocol) })}, nil, nil,
			map[string]string{"four": "192.0.2.1", "both": "192.0.2.1 2001:db8::1"}},
		{"with endpoints", []*corev1.Node{a, b}, []*corev1.Service{service("on-b", 1, 80, local), service("nowhere", 2, 81, local)}, nil, nil, map[string]string{"on-b": "192.0.2.2", "nowhere": ""}},
		{"the older of two", []*corev1.Node{a}, []*corev1.Service{service("young", 2, 80), service("old", 1, 80), service("udp", 3, 80, udp)}, nil, nil,
			map[string]string{"old": "192.0.2.1", "young": "[Service ns/old has it on node a]", "udp": "192.0.2.1"}},
		{"all ports or none", []*corev1.Node{a}, []*corev1.Service{service("old", 1, 80), service("young", 2, 81, func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: 80})
		}), service("other", 3, 81)}, nil, nil, map[string]string{"old": "192.0.2.1", "young": "[Service ns/old]", "other": "192.0.2.1"}},
		{"one port in two pools", []*corev1.Node{node("a", "192.0.2.1", nodeLabel(PoolLabel, "x")), node("b", "192.0.2.2", nodeLabel(PoolLabel, "y"))},
			[]*corev1.Service{service("x", 1, 80, pooled("x")), service("y", 2, 80, pooled("y"))}, nil, nil, map[string]string{"x": "192.0.2.1", "y": "192.0.2.2"}},
		{"not where something listens", []*corev1.Node{a, b}, []*corev1.Service{service("s", 1, 22)}, map[string]map[Port]bool{"a": {{corev1.ProtocolTCP, 22}: true}}, nil,
			map[string]string{"s": "192.0.2.2 [something on node a listens there]"}},
		{"not where something listens by UDP", []*corev1.Node{a}, []*corev1.Service{service("s", 1, 53)}, map[string]map[Port]bool{"a": {{corev1.ProtocolUDP, 53}: true}}, nil, map[string]string{"s": "192.0.2.1"}},
		{"not what is reserved", []*corev1.Node{a, b}, []*corev1.Service{service("s", 1, 6443)}, nil, nil, map[string]string{"s": "[belongs to the Kubernetes API]"}},
		{"the one that is asked for", []*corev1.Node{a, b}, []*corev1.Service{service("s", 1, 80, asks("192.0.2.2")), service("none", 2, 81, asks("192.0.2.9"))}, nil, nil,
			map[string]string{"s": "192.0.2.2", "none": "[not an address of a node]"}},

		{"of the pool", []*corev1.Node{a, b}, []*corev1.Service{service("two", 2, 80), service("one", 1, 80), service("three", 3, 80)}, nil, []string{"192.0.2.10", "192.0.2.11"},
			map[string]string{"one": "192.0.2.10", "two": "192.0.2.11", "three": "[every address of the pool]"}},
		{"of the pool, kept", []*corev1.Node{a}, []*corev1.Service{service("old", 1, 80), service("young", 2, 80, has("192.0.2.10"))}, nil, []string{"192.0.2.10", "192.0.2.11"},
			map[string]string{"old": "192.0.2.11", "young": "192.0.2.10"}},
		{"of the pool, shared", []*corev1.Node{a}, []*corev1.Service{service("s", 1, 80), service("t", 2, 81, asks("192.0.2.10")), service("u", 3, 81, asks("192.0.2.10")), service("v", 4, 80, asks("192.0.2.1"))}, nil, []string{"192.0.2.10"},
			map[string]string{"s": "192.0.2.10", "t": "192.0.2.10", "u": "[Service ns/t has it at 192.0.2.10]", "v": "[not in the pool]"}},
		{"of the pool, where the host's ports do not matter", []*corev1.Node{a}, []*corev1.Service{service("s", 1, 22)}, map[string]map[Port]bool{"a": {{corev1.ProtocolTCP, 22}: true}}, []string{"192.0.2.10"},
			map[string]string{"s": "192.0.2.10"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world{nodes: c.nodes, services: c.services, taken: c.taken, reserved: map[Port]string{{corev1.ProtocolTCP, 6443}: "the Kubernetes API"},
				local: func(s *corev1.Service) map[string]bool { return map[string]bool{"b": s.Name == "on-b"} }}
			for _, p := range c.pool {
				w.pool = append(w.pool, netip.MustParseAddr(p))
			}
			for i, d := range w.assign() {
				var got []string
				for _, in := range d.ingress {
					got = append(got, in.IP)
					if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP {
						t.Errorf("%s: the mode is %v", w.services[i].Name, in.IPMode)
					}
				}
				want, complaint, complains := strings.Cut(strings.TrimSuffix(c.want[w.services[i].Name], "]"), "[")
				if strings.Join(got, " ") != strings.TrimSpace(want) || complains != (d.complaint != "") || !strings.Contains(d.complaint, complaint) || complains != (d.reason != "") {
					t.Errorf("%s: %v, %s %q, want %q", w.services[i].Name, got, d.reason, d.complaint, c.want[w.services[i].Name])
				}
			}
		})
	}
}

func TestOneNodeAnswersForAnAddressUntilItCannot(t *testing.T) {
	pool := []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	decide := func(nodes []*corev1.Node, edit ...func(*corev1.Service)) decision {
		w := world{nodes: nodes, pool: pool, services: []*corev1.Service{service("s", 1, 80, edit...)},
			local: func(*corev1.Service) map[string]bool { return map[string]bool{"c": true} }}
		return w.assign()[0]
	}
	a, b, c := node("a", "192.0.2.1"), node("b", "192.0.2.2"), node("c", "192.0.2.3")
	first := decide([]*corev1.Node{a, b, c}).announcer
	if again := decide([]*corev1.Node{c, b, a}).announcer; first == "" || again != first {
		t.Errorf("first %q, then %q", first, again)
	}
	for _, n := range []string{"a", "b", "c"} {
		if got := decide([]*corev1.Node{a, b, c}, by(n)).announcer; got != n {
			t.Errorf("node %s answered, and now %s", n, got)
		}
	}
	if got := decide([]*corev1.Node{node("a", "192.0.2.1", notReady), b}, by("a")).announcer; got != "b" {
		t.Errorf("in place of a broken one %q answers", got)
	}
	if got := decide([]*corev1.Node{a, b, c}, by("a"), local).announcer; got != "c" {
		t.Errorf("of nodes without endpoints %q answers", got)
	}
	// Its address stays while nobody can.
	if d := decide([]*corev1.Node{a, b}, by("a"), local, has("192.0.2.10")); d.announcer != "" || len(d.ingress) != 1 {
		t.Errorf("without endpoints: %+v", d)
	}
	// Two Services of one address are answered for by one node.
	w := world{nodes: []*corev1.Node{a, c}, pool: pool, services: []*corev1.Service{service("s", 1, 80, by("a")), service("t", 2, 81, asks("192.0.2.10"), local, by("c"))},
		local: func(*corev1.Service) map[string]bool { return map[string]bool{"c": true} }}
	if d := w.assign(); d[0].announcer != "a" || d[1].announcer != "a" {
		t.Errorf("one address is answered for by %q and %q", d[0].announcer, d[1].announcer)
	}
}

func TestTakenPortsAreReadAsTheyAreWritten(t *testing.T) {
	ports := asked([]*corev1.Service{service("b", 1, 443), service("a", 1, 53, udp), service("c", 1, 53), service("d", 1, 53)})
	text := formatPorts(ports)
	if text != "53/TCP,53/UDP,443/TCP" {
		t.Errorf("written as %q", text)
	}
	got := parsePorts(text + ",0/TCP,70000/TCP,x")
	if len(got) != 3 || !got[Port{corev1.ProtocolUDP, 53}] || !got[Port{corev1.ProtocolTCP, 443}] {
		t.Errorf("read as %v", got)
	}
}

func TestARPAnswersWhoAsks(t *testing.T) {
	q := arpPacket{op: arpRequest, senderMAC: []byte{2, 0, 0, 0, 0, 1}, sender: netip.MustParseAddr("192.0.2.1"), targetMAC: make([]byte, 6), target: netip.MustParseAddr("192.0.2.10")}
	got, ok := parseARP(q.marshal(broadcast))
	if !ok || got.op != q.op || got.sender != q.sender || got.target != q.target || got.senderMAC.String() != q.senderMAC.String() {
		t.Errorf("%+v became %+v", q, got)
	}
	for _, bad := range [][]byte{nil, q.marshal(broadcast)[:41], append(make([]byte, 14), q.marshal(broadcast)[14:]...)} {
		if _, ok := parseARP(bad); ok {
			t.Errorf("%x is taken for ARP", bad)
		}
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arpPacket{op: 1, senderMAC: broadcast, sender: netip.IPv4Unspecified(), targetMAC: broadcast, target: netip.IPv4Unspecified()}.marshal(broadcast))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseARP(b); ok {
			again, ok := parseARP(p.marshal(broadcast))
			if !ok || again.target != p.target || again.op != p.op {
				t.Errorf("%+v became %+v", p, again)
			}
		}
		parseSolicitation(b)
	})
}

// within bounds waits that end at once unless the test fails.
const within = 30 * time.Second
