package e2e

import (
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// near places a pod by labels of pods that run already.
func near(label, value string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{
		TopologyKey:   corev1.LabelHostname,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: value}},
	}}
}

func affinity(a corev1.Affinity) kube.Option {
	return kube.Spec(func(p *corev1.PodSpec) { p.Affinity = &a })
}

func TestMemoryLimitEndsAGreedyContainer(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("greedy", kube.Once, kube.Testbox("alloc", "256MiB"), kube.Limit("memory", "64Mi")),
		kube.Pod("modest", kube.Testbox("alloc", "16MiB"), kube.Limit("memory", "128Mi")),
	)
	pod := s.pod("greedy", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	end := pod.Status.ContainerStatuses[0].State.Terminated
	if end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("the container ended by %s with %d, want OOMKilled with 137", end.Reason, end.ExitCode)
	}
	s.running("modest")
}

func TestRequestsAndLimitsReachTheContainer(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("burstable", kube.Request("cpu", "20m"), kube.Request("memory", "32Mi"), kube.Limit("cpu", "250m"), kube.Limit("memory", "64Mi")),
		kube.Pod("guaranteed", kube.Limit("cpu", "100m"), kube.Limit("memory", "64Mi")),
		kube.Pod("besteffort"),
	)
	for name, class := range map[string]corev1.PodQOSClass{
		"burstable": corev1.PodQOSBurstable, "guaranteed": corev1.PodQOSGuaranteed, "besteffort": corev1.PodQOSBestEffort,
	} {
		if pod := s.running(name); pod.Status.QOSClass != class {
			t.Errorf("%s is of class %s", name, pod.Status.QOSClass)
		}
	}
	// The same in either version of cgroups.
	out := s.in("burstable", "sh", "-c", `
cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us)
cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes`)
	want(t, "the limits in the container", out, "25000 100000\n67108864")
}

func TestPodThatFitsNowhereWaitsAndTellsWhy(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("huge", kube.Request("cpu", "1000")))
	s.event("huge", "FailedScheduling", "Insufficient cpu")
	want(t, "the phase", s.get("pod/huge", ".status.phase"), "Pending")
}

func TestPodWaitsForANodeOfItsAffinity(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("picky", affinity(corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: "example.org/" + s.ns, Operator: corev1.NodeSelectorOpIn, Values: []string{"blue", "green"},
				}},
			}}},
		}})),
		kube.Pod("selective", kube.Node("kubernetes.io/os", "linux"), kube.Node("kubernetes.io/arch", runtime.GOARCH)),
		kube.Pod("foreign", kube.Node("kubernetes.io/os", "plan9")),
	)
	s.event("picky", "FailedScheduling", "didn't match Pod's node affinity/selector")
	s.event("foreign", "FailedScheduling", "didn't match Pod's node affinity/selector")
	s.running("selective")
	s.Kubectl(t, "label", "nodes", "--all", "example.org/"+s.ns+"=green")
	s.running("picky")
}

func TestPodsKeepAwayFromEachOther(t *testing.T) {
	s := newSpace(t)
	leads := kube.Label("role", "leader")
	apart := affinity(corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: near("role", "leader"),
	}})
	s.create(kube.Pod("first", leads, apart))
	s.running("first")
	s.create(kube.Pod("second", leads, apart))
	s.event("second", "FailedScheduling", "didn't match pod anti-affinity rules")
	s.kubectl("delete", "pod", "first")
	s.running("second")
}

func TestPodsSeekEachOther(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("follower", affinity(corev1.Affinity{PodAffinity: &corev1.PodAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: near("role", "leader"),
	}})))
	s.event("follower", "FailedScheduling", "didn't match pod affinity rules")
	s.create(kube.Pod("leader", kube.Label("role", "leader")))
	s.running("follower")
}

// Other tests' pods do not tolerate the taints, so this one runs alone.
func TestTaintsKeepPodsAwayThatDoNotTolerateThem(t *testing.T) {
	s := newSpaceAlone(t)
	s.create(kube.Pod("resident"))
	s.running("resident")
	s.Kubectl(t, "taint", "nodes", "--all", "example.org/work=inside:NoSchedule")
	s.create(kube.Pod("stranger"), kube.Pod("worker", kube.Tolerate("example.org/work", "inside", corev1.TaintEffectNoSchedule)))
	s.running("worker")
	s.event("stranger", "FailedScheduling", "untolerated taint")
	s.running("resident")

	s.Kubectl(t, "taint", "nodes", "--all", "example.org/work:NoSchedule-")
	s.running("stranger")

	s.create(kube.Pod("patient", kube.Tolerate("example.org/leave", "", corev1.TaintEffectNoExecute)))
	s.running("patient")
	s.Kubectl(t, "taint", "nodes", "--all", "example.org/leave=now:NoExecute")
	for _, name := range []string{"resident", "stranger", "worker"} {
		s.WaitGone(t, s.ns, name)
	}
	s.Kubectl(t, "taint", "nodes", "--all", "example.org/leave:NoExecute-")
	s.running("patient")
}

func TestCordonedNodeTakesNoPods(t *testing.T) {
	s := newSpaceAlone(t)
	node := s.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	s.Kubectl(t, "cordon", node)
	s.create(kube.Pod("late"))
	s.event("late", "FailedScheduling", "unschedulable")
	s.Kubectl(t, "uncordon", node)
	s.running("late")
}

func TestImportantPodTakesTheRoomOfAnother(t *testing.T) {
	s := newSpace(t)
	s.create(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Value: 1000})
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "priorityclass", s.ns) })
	// A resource of this test's own, so that no other test lacks it.
	resource := "example.org/" + s.ns
	node := s.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	s.Kubectl(t, "patch", "node", node, "--subresource=status", "--type=merge", "--patch", `{"status": {"capacity": {"`+resource+`": "1"}, "allocatable": {"`+resource+`": "1"}}}`)
	room := kube.Limit(corev1.ResourceName(resource), "1")
	s.create(kube.Pod("usual", room))
	s.running("usual")
	s.create(kube.Pod("important", room, kube.Spec(func(p *corev1.PodSpec) { p.PriorityClassName = s.ns })))
	s.running("important")
	s.WaitGone(t, s.ns, "usual")
}
