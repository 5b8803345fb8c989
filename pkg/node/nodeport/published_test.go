package nodeport

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestLoopbackServesWhatIsPublishedAtTheNodesAddress(t *testing.T) {
	f := New(nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil)
	for _, c := range []struct {
		kind   corev1.ServiceType
		ip     string
		mode   *corev1.LoadBalancerIPMode
		ranges []string
		want   bool
	}{
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", nil, nil, true},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", new(corev1.LoadBalancerIPModeVIP), nil, true},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", new(corev1.LoadBalancerIPModeProxy), nil, false},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.2", nil, nil, false},
		{corev1.ServiceTypeLoadBalancer, "", nil, nil, false},
		{corev1.ServiceTypeNodePort, "192.0.2.1", nil, nil, false},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", nil, []string{"198.51.100.0/24"}, false},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", nil, []string{"198.51.100.0/24", " 192.0.2.0/24 "}, true},
		{corev1.ServiceTypeLoadBalancer, "192.0.2.1", nil, []string{"127.0.0.0/8"}, true},
	} {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Type: c.kind, LoadBalancerSourceRanges: c.ranges}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: c.ip, IPMode: c.mode}}
		if got := f.published(s); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
