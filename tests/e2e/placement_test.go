package e2e

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// scheduler has a pod wait for a scheduler of that name.
func scheduler(name string) kube.Option {
	return kube.Spec(func(p *corev1.PodSpec) { p.SchedulerName = name })
}

func (s *space) nodeName() string {
	s.t.Helper()
	return s.Kubectl(s.t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
}

// ownResource is room for one pod, of a kind that no other test uses.
func (s *space) ownResource() kube.Option {
	s.t.Helper()
	name := "example.org/" + s.ns
	s.Kubectl(s.t, "patch", "node", s.nodeName(), "--subresource=status", "--type=merge",
		"--patch", `{"status": {"capacity": {"`+name+`": "1"}, "allocatable": {"`+name+`": "1"}}}`)
	return kube.Limit(corev1.ResourceName(name), "1")
}

func TestUserPlacesAPodByHand(t *testing.T) {
	s := newSpace(t)
	node := s.nodeName()
	s.create(
		kube.Pod("named", scheduler("nobody"), kube.On(node)),
		kube.Pod("bound", scheduler("nobody")),
	)
	s.running("named")
	want(t, "the node of a pod that nobody schedules", s.get("pod/bound", ".spec.nodeName"), "")
	err := s.Client.CoreV1().Pods(s.ns).Bind(t.Context(), &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.running("bound")
}

func TestPodsAreScheduledByADeploymentThatTheyName(t *testing.T) {
	s := newSpace(t)
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:kube-scheduler"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "scheduler", Namespace: s.ns}},
	}
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "clusterrolebinding", s.ns) })
	s.create(
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "scheduler"}}, binding,
		kube.Pod("early", scheduler("second")),
		kube.Deployment("second", 1, kube.Testbox("schedule", "second"), kube.Spec(func(p *corev1.PodSpec) { p.ServiceAccountName = "scheduler" })),
	)
	s.running("early")
	s.create(kube.Deployment("web", 2, scheduler("second")), kube.Pod("foreign", scheduler("third")))
	s.pods("app=web", 2)
	said := s.kubectl("logs", "deployment/second")
	wantPart(t, "what the second scheduler says", said, "early on "+s.nodeName())
	want(t, "the node of a pod that it must leave alone", s.get("pod/foreign", ".spec.nodeName"), "")
}

func TestGatedPodWaitsForTheLastOfItsGates(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("gated", kube.Spec(func(p *corev1.PodSpec) {
		p.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.org/money"}, {Name: "example.org/permit"}}
	})))
	gated := func(gates int) {
		t.Helper()
		s.pod("gated", "gated", func(p *corev1.Pod) bool {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
					return len(p.Spec.SchedulingGates) == gates
				}
			}
			return false
		})
	}
	gated(2)
	s.kubectl("patch", "pod", "gated", "--patch", `{"spec": {"schedulingGates": [{"$patch": "delete", "name": "example.org/money"}]}}`)
	gated(1)
	// While it waits it may be told more precisely where to go.
	s.kubectl("patch", "pod", "gated", "--patch", `{"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}`)
	s.kubectl("patch", "pod", "gated", "--patch", `{"spec": {"schedulingGates": [{"$patch": "delete", "name": "example.org/permit"}]}}`)
	s.running("gated")
}
