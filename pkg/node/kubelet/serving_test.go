package kubelet

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A certificate for the address that the machine had before is of no use, and a
// cloud's names come only with its controller.
func TestServingCertificateIsOfTheAddressesTheNodeIsGoingToHave(t *testing.T) {
	k := &Kubelet{}
	k.cfg.NodeName, k.cfg.NodeIPs = "edge-1", []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	ours := k.addresses()
	for name, c := range map[string]struct{ has, want []corev1.NodeAddress }{
		"new":           {nil, ours},
		"moved":         {[]corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, ours[0], ours[2]}, ours},
		"named by more": {append(slices.Clone(ours), corev1.NodeAddress{Type: corev1.NodeExternalDNS, Address: "edge-1.example.org"}), nil},
	} {
		if c.want == nil {
			c.want = c.has
		}
		if got := k.current(c.has); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
