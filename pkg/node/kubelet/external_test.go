package kubelet

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	upstream "k8s.io/kubernetes/pkg/kubelet"
)

func TestUpstreamKeepsWhatWritesStatusWhereItIsLookedFor(t *testing.T) {
	f, ok := reflect.TypeFor[upstream.Kubelet]().FieldByName(statusFuncs)
	if !ok || f.Type != reflect.TypeFor[[]statusFunc]() {
		t.Errorf("field %s is there: %v, of type %v", statusFuncs, ok, f.Type)
	}
}

func TestExternalAddressesAreAddedOnce(t *testing.T) {
	n := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.2"}}}}
	add := externalIPs([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	for range 2 {
		if err := add(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	want := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.2"}, {Type: corev1.NodeExternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeExternalIP, Address: "2001:db8::1"}}
	if !reflect.DeepEqual(n.Status.Addresses, want) {
		t.Errorf("addresses %v", n.Status.Addresses)
	}
}
