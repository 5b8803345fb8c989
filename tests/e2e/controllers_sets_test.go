package e2e

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const holding = `{"metadata": {"finalizers": ["example.org/hold"]}}`
const lettingGo = `{"metadata": {"finalizers": null}}`

// A pod is ready once it is told to, so that the test sees what comes before.
func TestStatefulSetStartsAndEndsItsPodsOneByOne(t *testing.T) {
	s := newSpace(t)
	told := kube.Ready(kube.Exec("test", "-f", "/tmp/ready"))
	crowd := kube.StatefulSet("crowd", 2, told)
	crowd.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	s.create(kube.StatefulSet("queue", 2, told), crowd)
	starts := func(name string) {
		s.pod(name, "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	}
	starts("crowd-0")
	starts("crowd-1")
	starts("queue-0")
	want(t, "the pods before the first is ready", s.kubectl("get", "pods", "-l", "app=queue", "-o", "name"), "pod/queue-0\n")
	s.in("queue-0", "touch", "/tmp/ready")
	starts("queue-1")
	s.in("queue-1", "touch", "/tmp/ready")
	s.pods("app=queue", 2)

	s.kubectl("patch", "pod", "queue-1", "--patch", holding)
	s.kubectl("scale", "statefulset/queue", "--replicas=0")
	s.pod("queue-1", "told to end", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	want(t, "when the first was told to end", s.get("pod/queue-0", ".metadata.deletionTimestamp"), "")
	s.kubectl("patch", "pod", "queue-1", "--patch", lettingGo)
	s.pods("app=queue", 0)
}

func TestStatefulSetChangesOnlyThePodsOfItsPartition(t *testing.T) {
	s := newSpace(t)
	set := func(n string, partition int32) *appsv1.StatefulSet {
		set := kube.StatefulSet("db", 2, edition(n))
		set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{
			Type:          appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition},
		}
		return set
	}
	wantEach := func(first, second string) {
		t.Helper()
		got := editions(s.pods("app=db", 2))
		want(t, "the edition of db-0", got["db-0"], first)
		want(t, "the edition of db-1", got["db-1"], second)
	}
	s.create(set("1", 1))
	s.rolledOut("statefulset/db")
	s.create(set("2", 1))
	s.rolledOut("statefulset/db")
	wantEach("1", "2")
	// The old edition comes back where it belongs.
	s.kubectl("delete", "pod", "db-0")
	wantEach("1", "2")
	s.create(set("2", 0))
	s.rolledOut("statefulset/db")
	wantEach("2", "2")
	s.kubectl("rollout", "undo", "statefulset/db")
	s.rolledOut("statefulset/db")
	wantEach("1", "1")
}

func TestDaemonSetGoesBackToTheRevisionBefore(t *testing.T) {
	s := newSpace(t)
	for _, n := range []string{"1", "2"} {
		s.create(kube.DaemonSet("agent", edition(n)))
		s.rolledOut("daemonset/agent")
	}
	wantEdition(t, s.pods("app=agent", 1), "2")
	s.kubectl("rollout", "undo", "daemonset/agent")
	s.rolledOut("daemonset/agent")
	wantEdition(t, s.pods("app=agent", 1), "1")
}

func TestDaemonSetLeavesItToTheUserWhenPodsChange(t *testing.T) {
	s := newSpace(t)
	agent := func(n string) *appsv1.DaemonSet {
		d := kube.DaemonSet("agent", edition(n))
		d.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
		return d
	}
	s.create(agent("1"))
	old := s.pods("app=agent", 1)
	s.create(agent("2"))
	s.waitUntil("daemonset/agent", "jsonpath={.status.observedGeneration}=2")
	wantEdition(t, s.pods("app=agent", 1), "1")
	s.kubectl("delete", "pod", old[0].Name)
	wantEdition(t, s.pods("app=agent", 1), "2")
}

// The pod of before stays until the one that follows it is ready.
func TestDaemonSetWithSurgeIsNeverAbsent(t *testing.T) {
	s := newSpace(t)
	agent := func(n string) *appsv1.DaemonSet {
		d := kube.DaemonSet("agent", edition(n), kube.Ready(kube.Exec("test", "-f", "/tmp/ready")))
		d.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType}
		d.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: new(intstr.FromInt32(1)), MaxUnavailable: new(intstr.FromInt32(0))}
		return d
	}
	s.create(agent("1"))
	started := func(n string) *corev1.Pod {
		t.Helper()
		var pod *corev1.Pod
		s.WaitPodsUntil(t, s.ns, "app=agent", "have one of edition "+n+" that runs", func(pods []*corev1.Pod) bool {
			i := slices.IndexFunc(pods, func(p *corev1.Pod) bool {
				return p.Status.Phase == corev1.PodRunning && p.Spec.Containers[0].Env[0].Value == n
			})
			if i >= 0 {
				pod = pods[i]
			}
			return i >= 0
		})
		return pod
	}
	first := started("1")
	s.in(first.Name, "touch", "/tmp/ready")
	s.running(first.Name)
	s.create(agent("2"))
	second := started("2")
	// Ready or not, it is returned as it is now.
	if p := s.pod(first.Name, "there", func(*corev1.Pod) bool { return true }); !harness.PodReady(p) {
		t.Error("the pod of before ends although the one after it is not ready")
	}
	s.in(second.Name, "touch", "/tmp/ready")
	s.rolledOut("daemonset/agent")
	if pods := s.pods("app=agent", 1); !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.Name == second.Name }) {
		t.Errorf("the pod that is left is not %s", second.Name)
	}
}
