package e2e

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestOwnerThatIsDeletedInTheForegroundWaitsForWhatItOwns(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("fleet", 1))
	pod := s.pods("app=fleet", 1)[0].Name
	s.kubectl("patch", "pod", pod, "--patch", holding)
	s.kubectl("delete", "deployment", "fleet", "--cascade=foreground", "--wait=false")
	s.pod(pod, "told to end", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	want(t, "what the Deployment waits for", s.get("deployment/fleet", ".metadata.finalizers[*]"), "foregroundDeletion")
	s.kubectl("patch", "pod", pod, "--patch", lettingGo)
	s.waitUntil("deployment/fleet", "delete")
	s.WaitGone(t, s.ns, pod)
}

// owned makes a ConfigMap that others own.
func (s *space) owned(name string, owners ...*corev1.ConfigMap) *corev1.ConfigMap {
	s.t.Helper()
	c := kube.ConfigMap(name)
	for _, o := range owners {
		c.OwnerReferences = append(c.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: o.UID})
	}
	c, err := s.Client.CoreV1().ConfigMaps(s.ns).Create(s.t.Context(), c, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func TestWhatIsOwnedGoesWithItsLastOwner(t *testing.T) {
	s := newSpace(t)
	first, second := s.owned("first"), s.owned("second")
	s.owned("joint", first, second)
	s.owned("hers", second)
	s.owned("nobodys", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "never-was", UID: types.UID("00000000-0000-0000-0000-000000000000")}})
	s.waitUntil("configmap/nobodys", "delete")
	s.kubectl("delete", "configmap", "first")
	s.waitUntil("configmap/joint", "jsonpath={.metadata.ownerReferences[0].name}=second")
	s.kubectl("delete", "configmap", "second")
	s.waitUntil("configmap/joint", "delete")
	s.waitUntil("configmap/hers", "delete")
}

func TestOwnersInACircleAreDeletedAllTheSame(t *testing.T) {
	s := newSpace(t)
	first := s.owned("first")
	second := s.owned("second", first)
	third := s.owned("third", second)
	first.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: third.Name, UID: third.UID, BlockOwnerDeletion: new(true)}}
	if _, err := s.Client.CoreV1().ConfigMaps(s.ns).Update(t.Context(), first, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.kubectl("delete", "configmap", "first", "--cascade=foreground", "--timeout=60s")
	for _, name := range []string{"second", "third"} {
		s.waitUntil("configmap/"+name, "delete")
	}
}

// budget is a PodDisruptionBudget for the pods app=<name>.
func budget(name string, atLeast int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: new(intstr.FromInt32(atLeast)),
		Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
	}}
}

func (s *space) evict(pod string) error {
	return s.Client.PolicyV1().Evictions(s.ns).Evict(s.t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: s.ns}})
}

func TestDisruptionBudgetRefusesEvictionsBeyondIt(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("web", 2), budget("web", 2))
	pods := s.pods("app=web", 2)
	s.waitUntil("pdb/web", "jsonpath={.status.currentHealthy}=2")
	err := s.evict(pods[0].Name)
	if !apierrors.IsTooManyRequests(err) {
		t.Fatalf("the eviction of one of two pods that must both be there: %v", err)
	}
	wantPart(t, "the refusal", err.Error(), "disruption budget")

	s.create(budget("web", 1))
	s.waitUntil("pdb/web", "jsonpath={.status.disruptionsAllowed}=1")
	if err := s.evict(pods[0].Name); err != nil {
		t.Errorf("the eviction of one of two pods of which one must be there: %v", err)
	}
	s.WaitGone(t, s.ns, pods[0].Name)
	s.pods("app=web", 2)
}

func TestDisruptionBudgetSaysWhetherUnreadyPodsMayBeEvicted(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("sick", kube.Ready(kube.Exec("false"))), budget("sick", 1))
	s.pod("sick", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	s.waitUntil("pdb/sick", "jsonpath={.status.desiredHealthy}=1")
	if err := s.evict("sick"); !apierrors.IsTooManyRequests(err) {
		t.Fatalf("the eviction of a pod that the budget wants back: %v", err)
	}
	lenient := budget("sick", 1)
	lenient.Spec.UnhealthyPodEvictionPolicy = new(policyv1.AlwaysAllow)
	s.create(lenient)
	s.waitUntil("pdb/sick", "jsonpath={.status.observedGeneration}=2")
	if err := s.evict("sick"); err != nil {
		t.Errorf("the eviction of an unready pod that the budget allows: %v", err)
	}
	s.WaitGone(t, s.ns, "sick")
}
