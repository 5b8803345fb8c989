package controlplane

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/tunnel"
)

// clusterInfo is the ConfigMap in kube-system by which nodes learn what they have
// to do alike; see package join.
const clusterInfo = "knarr-cluster"

// rbacPolicy is a list of roles and of who has them.
type rbacPolicy struct {
	clusterRoles    []*rbacv1.ClusterRole
	clusterBindings []*rbacv1.ClusterRoleBinding
	roles           []*rbacv1.Role
	bindings        []*rbacv1.RoleBinding
}

// ownPolicy is Knarr's: what a machine that joins may do, and what a node's
// kube-proxy, flannel and cluster DNS read with its own certificate. What its
// kubelet may is decided by upstream's Node authorizer.
func ownPolicy() rbacPolicy {
	const (
		bootstrappers = "system:bootstrappers"
		nodes         = "system:nodes"
		node          = "knarr:node"
		info          = "knarr:cluster-info"
	)
	group := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}
	}
	ref := func(kind, name string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	}
	read := []string{"get", "list", "watch"}
	return rbacPolicy{
		clusterRoles: []*rbacv1.ClusterRole{{
			ObjectMeta: metav1.ObjectMeta{Name: node},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"services", "nodes", "namespaces"}, Verbs: read},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
				// The user's own configuration of cluster DNS; see package dns.
				{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"coredns-custom"}, Verbs: read},
				{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"servicecidrs"}, Verbs: []string{"list", "watch"}},
				{NonResourceURLs: []string{tunnel.Path}, Verbs: []string{"get"}},
				// The registry in the server's process, where there is one. A node that was
				// taken over must not replace what others run.
				{NonResourceURLs: []string{"/knarr/registry/*"}, Verbs: []string{"get", "head"}},
				{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}},
			},
		}, {
			// For whoever looks after the cluster: bind it to Prometheus.
			ObjectMeta: metav1.ObjectMeta{Name: "knarr:monitoring"},
			Rules: []rbacv1.PolicyRule{
				{NonResourceURLs: []string{"/metrics", "/metrics/slis", "/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*", "/knarr/*"}, Verbs: []string{"get"}},
				{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}},
			},
		}},
		clusterBindings: []*rbacv1.ClusterRoleBinding{
			{
				// Those who join may ask for their first certificate.
				ObjectMeta: metav1.ObjectMeta{Name: "knarr:node-bootstrapper"},
				RoleRef:    ref("ClusterRole", "system:node-bootstrapper"),
				Subjects:   []rbacv1.Subject{group(bootstrappers)},
			},
			{
				ObjectMeta: metav1.ObjectMeta{Name: node},
				RoleRef:    ref("ClusterRole", node),
				Subjects:   []rbacv1.Subject{group(nodes)},
			},
		},
		roles: []*rbacv1.Role{{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: info},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{clusterInfo}, Verbs: read}},
		}},
		bindings: []*rbacv1.RoleBinding{{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: info},
			RoleRef:    ref("Role", info),
			Subjects:   []rbacv1.Subject{group(bootstrappers), group(nodes)},
		}},
	}
}
