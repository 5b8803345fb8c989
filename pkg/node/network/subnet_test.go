package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func apiNode(name, podCIDR string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if podCIDR != "" {
		n.Spec = corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}}
	}
	return n
}

type subnetTest struct {
	cfg    SubnetConfig
	cni    *CNI
	client *fake.Clientset
}

// newSubnetTest is a node with a file that says what is remembered.
func newSubnetTest(t *testing.T, remembered string, nodes ...*corev1.Node) *subnetTest {
	s := &subnetTest{cni: newCNI(t), client: fake.NewClientset()}
	for _, n := range nodes {
		must[*corev1.Node](t)(s.client.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{}))
	}
	s.cfg = SubnetConfig{
		NodeName: "a", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), File: filepath.Join(t.TempDir(), "network", "subnet"),
		Client: func() (kubernetes.Interface, error) { return s.client, nil }, Log: testLog(t),
	}
	if remembered != "" {
		if err := os.Mkdir(filepath.Dir(s.cfg.File), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.cfg.File, []byte(remembered), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run runs the component in the namespace until the test ends; wait returns once
// it is ready.
func (s *subnetTest) run(t *testing.T, sub *Subnet, ns netns.NsHandle) (wait func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		enterThread(ns)
		done <- sub.Run(ctx, ready)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return func() {
		t.Helper()
		select {
		case <-ready:
		case err := <-done:
			t.Fatal(err)
		}
	}
}

func (s *subnetTest) says(t *testing.T, want string) {
	t.Helper()
	content, err := os.ReadFile(s.cni.Path())
	if want == "" {
		if err == nil {
			t.Errorf("configuration written: %s", content)
		}
		return
	}
	if !strings.Contains(string(content), `"`+want+`"`) {
		t.Errorf("configuration is not about %s: %v\n%s", want, err, content)
	}
}

func TestSubnetIsKnownBeforeTheClusterSaysIt(t *testing.T) {
	inNetns(t)
	for name, c := range map[string]struct {
		remembered string
		newCluster bool
		cluster    string
		mask       int
		want       string
	}{
		"nothing known":                  {want: ""},
		"new cluster":                    {newCluster: true, want: "10.42.0.0/24"},
		"new cluster, IPv6":              {newCluster: true, cluster: "fd42::/56", want: "fd42::/64"},
		"new cluster, other mask":        {newCluster: true, mask: 20, want: "10.42.0.0/20"},
		"new cluster of one subnet":      {newCluster: true, cluster: "10.42.7.0/25", want: "10.42.7.0/25"},
		"restart":                        {remembered: `{"subnet":"10.42.9.0/24"}`, want: "10.42.9.0/24"},
		"new cluster on an old node":     {remembered: `{"subnet":"10.42.9.0/24"}`, newCluster: true, want: "10.42.0.0/24"},
		"cluster has other addresses":    {remembered: `{"subnet":"10.1.9.0/24"}`, want: ""},
		"remembered more than a cluster": {remembered: `{"subnet":"10.42.0.0/8"}`, want: ""},
		"file torn by a crash":           {remembered: `{"sub`, want: ""},
		"empty file":                     {remembered: "\n", want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSubnetTest(t, c.remembered)
			s.cfg.NewCluster, s.cfg.MaskSize = c.newCluster, c.mask
			if c.cluster != "" {
				s.cfg.ClusterCIDR = netip.MustParsePrefix(c.cluster)
			}
			got := must[netip.Prefix](t)(NewSubnet(s.cfg, s.cni).Prepare())
			if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
				t.Errorf("prepared %v, want %q", got, c.want)
			}
			s.says(t, c.want)
		})
	}
}

func TestSubnetWaitsForTheCluster(t *testing.T) {
	ns := inNetns(t)
	s := newSubnetTest(t, "", apiNode("a", ""), apiNode("b", "10.42.0.0/24"))
	sub := NewSubnet(s.cfg, s.cni)
	wait := s.run(t, sub, ns)
	must[*corev1.Node](t)(s.client.CoreV1().Nodes().Update(t.Context(), apiNode("a", "10.42.1.0/24"), metav1.UpdateOptions{}))
	wait()
	s.says(t, "10.42.1.0/24")
	if got := must[netip.Prefix](t)(NewSubnet(s.cfg, s.cni).Prepare()); got.String() != "10.42.1.0/24" {
		t.Errorf("next start remembers %v", got)
	}
}

func TestWrongPredictionIsMended(t *testing.T) {
	for name, c := range map[string]struct{ pods, bridgeGone bool }{
		"no pods":       {pods: false, bridgeGone: true},
		"pods use cni0": {pods: true, bridgeGone: false},
	} {
		t.Run(name, func(t *testing.T) {
			ns := inNetns(t)
			s := newSubnetTest(t, "", apiNode("a", "10.42.5.0/24"))
			s.cfg.NewCluster = true
			sub := NewSubnet(s.cfg, s.cni)
			must[netip.Prefix](t)(sub.Prepare())
			run(t, "ip", "link", "add", "cni0", "type", "bridge")
			run(t, "ip", "addr", "add", "10.42.0.1/24", "dev", "cni0")
			if c.pods {
				run(t, "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "eth0")
				run(t, "ip", "link", "set", "veth1", "master", "cni0")
			}
			s.run(t, sub, ns)()
			s.says(t, "10.42.5.0/24")
			if _, err := netlink.LinkByName("cni0"); (err != nil) != c.bridgeGone {
				t.Errorf("look for bridge: %v", err)
			}
		})
	}
}

func TestFirstSubnetIsAssumedUntilTheClusterTellsAnother(t *testing.T) {
	ns := inNetns(t)
	s := newSubnetTest(t, "", apiNode("a", "10.42.5.0/24"))
	sub := NewSubnet(s.cfg, s.cni)
	if got := must[netip.Prefix](t)(sub.Prepare()); got.IsValid() {
		t.Errorf("%v was prepared out of nothing", got)
	}
	s.says(t, "")
	if err := sub.Assume(); err != nil {
		t.Fatal(err)
	}
	s.says(t, "10.42.0.0/24")
	if got := must[netip.Prefix](t)(NewSubnet(s.cfg, s.cni).Prepare()); got.IsValid() {
		t.Errorf("what was only assumed is remembered: %v", got)
	}
	s.run(t, sub, ns)()
	s.says(t, "10.42.5.0/24")
	if err := sub.Assume(); err != nil {
		t.Fatal(err)
	}
	s.says(t, "10.42.5.0/24")
}

func TestRightBridgeStays(t *testing.T) {
	ns := inNetns(t)
	s := newSubnetTest(t, `{"subnet":"10.42.5.0/24"}`, apiNode("a", "10.42.5.0/24"))
	sub := NewSubnet(s.cfg, s.cni)
	must[netip.Prefix](t)(sub.Prepare())
	run(t, "ip", "link", "add", "cni0", "up", "type", "bridge")
	run(t, "ip", "addr", "add", "10.42.5.1/24", "dev", "cni0")
	s.run(t, sub, ns)()
	if _, err := netlink.LinkByName("cni0"); err != nil {
		t.Error(err)
	}
}

func TestExternalLinkIsFound(t *testing.T) {
	inNetns(t)
	node := netip.MustParseAddr("198.51.100.1")
	run(t, "ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
	run(t, "ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")
	for _, l := range []string{"up0", "up1", "other0", "other1"} {
		run(t, "ip", "link", "set", l, "up")
	}
	if _, err := ExternalLink("", node); err == nil || !strings.Contains(err.Error(), "--flannel-iface") {
		t.Errorf("without any address: %v", err)
	}
	run(t, "ip", "addr", "add", "203.0.113.1/24", "dev", "other0")
	run(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	run(t, "ip", "route", "add", "default", "via", "203.0.113.2")
	for _, c := range []struct{ iface, want, addr string }{
		{"", "other0", "198.51.100.1"}, // the address is on loopback: the default route's link
		{"other0", "other0", "203.0.113.1"},
	} {
		got, err := ExternalLink(c.iface, node)
		if err != nil || got.Name != c.want || got.Addr.String() != c.addr {
			t.Errorf("link %q: %+v, %v", c.iface, got, err)
		}
	}
	if got, err := ExternalLink("up0", node); err == nil {
		t.Errorf("a link without an address: %+v", got)
	}
	run(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
	if got, err := ExternalLink("", node); err != nil || got.Name != "up0" || got.MTU != 1400 || got.Addr != node {
		t.Errorf("%+v, %v", got, err)
	}
}
