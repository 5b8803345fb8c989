package dns

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// User is who the server is to the API server: the common name of the client
// certificate that Config.REST should carry.
const User = "system:knarr-dns"

// Objects are what the cluster needs for DNS: the Service that reserves the
// address, and what User may read.
//
// The Service has no selector and no endpoints. Its label tells kube-proxy to
// leave it alone: the address answers by itself on each node.
func Objects(cfg Config) []runtime.Object {
	cfg = cfg.withDefaults()
	read := []string{"list", "watch"}
	cores := []string{"services", "namespaces"}
	if cfg.Pods == PodsVerified {
		cores = append(cores, "pods")
	}
	family := corev1.IPv4Protocol
	if cfg.ClusterIP.Is6() {
		family = corev1.IPv6Protocol
	}
	single := corev1.IPFamilyPolicySingleStack
	local := corev1.ServiceInternalTrafficPolicyLocal
	return []runtime.Object{
		&rbacv1.ClusterRole{
			TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole"},
			ObjectMeta: metav1.ObjectMeta{Name: User},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: cores, Verbs: read},
				{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{CustomName}, Verbs: read},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
			},
		},
		&rbacv1.ClusterRoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRoleBinding"},
			ObjectMeta: metav1.ObjectMeta{Name: User},
			RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: User},
			Subjects:   []rbacv1.Subject{{APIGroup: "rbac.authorization.k8s.io", Kind: "User", Name: User}},
		},
		&corev1.Service{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: metav1.NamespaceSystem,
				Name:      "kube-dns",
				Labels: map[string]string{
					"k8s-app":                                  "kube-dns",
					"kubernetes.io/cluster-service":            "true",
					"kubernetes.io/name":                       "CoreDNS",
					"service.kubernetes.io/service-proxy-name": "knarr-dns",
				},
			},
			Spec: corev1.ServiceSpec{
				Type:                  corev1.ServiceTypeClusterIP,
				ClusterIP:             cfg.ClusterIP.String(),
				ClusterIPs:            []string{cfg.ClusterIP.String()},
				IPFamilies:            []corev1.IPFamily{family},
				IPFamilyPolicy:        &single,
				InternalTrafficPolicy: &local,
				Ports: []corev1.ServicePort{
					{Name: "dns", Protocol: corev1.ProtocolUDP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
					{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
				},
			},
		},
	}
}
