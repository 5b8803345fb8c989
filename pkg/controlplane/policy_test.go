package controlplane

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/knarr-dev/knarr/pkg/join"
)

func TestThoseWhoJoinMayReadWhatTheServersPublish(t *testing.T) {
	own := ownPolicy()
	for _, r := range own.roles {
		for _, b := range own.bindings {
			groups := map[string]bool{}
			for _, s := range b.Subjects {
				groups[s.Name] = s.Kind == rbacv1.GroupKind
			}
			if b.Namespace == r.Namespace && b.RoleRef.Name == r.Name && r.Namespace == join.ClusterNamespace &&
				slices.Equal(r.Rules[0].ResourceNames, []string{join.ClusterName}) &&
				slices.Contains(r.Rules[0].Verbs, "get") && groups["system:bootstrappers"] && groups["system:nodes"] {
				return
			}
		}
	}
	t.Errorf("nobody may read %s/%s: %+v", join.ClusterNamespace, join.ClusterName, own)
}

// A node must not be able to write what others rely on.
func TestANodesOwnRoleOnlyReadsAndTellsEvents(t *testing.T) {
	for _, r := range ownPolicy().clusterRoles {
		for _, rule := range r.Rules {
			for _, verb := range rule.Verbs {
				if !slices.Contains([]string{"get", "head", "list", "watch"}, verb) && !slices.Equal(rule.Resources, []string{"events"}) {
					t.Errorf("%s may %s %v", r.Name, verb, rule.Resources)
				}
			}
			if slices.Contains(rule.Resources, "*") || slices.Contains(rule.Resources, "secrets") || (slices.Contains(rule.Resources, "configmaps") && len(rule.ResourceNames) == 0) {
				t.Errorf("%s may read %v", r.Name, rule.Resources)
			}
		}
	}
}
