package e2e

import (
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// sleeper is a pod with some more lines in its spec.
func sleeper(name, labels, spec string) string {
	return `
---
apiVersion: v1
kind: Pod
metadata:
  name: ` + name + `
  labels: {` + labels + `}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: knarr.dev/test:1
` + strings.Trim(spec, "\n")
}

func TestMemoryLimitEndsAGreedyContainer(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: greedy
spec:
  restartPolicy: Never
  containers:
  - name: greedy
    image: knarr.dev/test:1
    args: [testbox, alloc, 256MiB]
    resources:
      limits: {memory: 64Mi}
---
apiVersion: v1
kind: Pod
metadata:
  name: modest
spec:
  containers:
  - name: modest
    image: knarr.dev/test:1
    args: [testbox, alloc, 16MiB]
    resources:
      limits: {memory: 128Mi}
`)
	pod := s.pod("greedy", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	end := pod.Status.ContainerStatuses[0].State.Terminated
	if end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("the container ended by %s with %d, want OOMKilled with 137", end.Reason, end.ExitCode)
	}
	s.running("modest")
}

func TestRequestsAndLimitsReachTheContainer(t *testing.T) {
	s := newSpace(t)
	s.apply(sleeper("burstable", "", `
    resources:
      requests: {cpu: 20m, memory: 32Mi}
      limits: {cpu: 250m, memory: 64Mi}`) +
		sleeper("guaranteed", "", `
    resources:
      limits: {cpu: 100m, memory: 64Mi}`) +
		sleeper("besteffort", "", ""))
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
	s.apply(sleeper("huge", "", `
    resources:
      requests: {cpu: "1000"}`))
	s.event("huge", "FailedScheduling", "Insufficient cpu")
	want(t, "the phase", s.get("pod/huge", ".status.phase"), "Pending")
}

func TestPodWaitsForANodeOfItsAffinity(t *testing.T) {
	s := newSpace(t)
	s.apply(sleeper("picky", "", `
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions:
          - {key: example.org/`+s.ns+`, operator: In, values: [blue, green]}`) +
		sleeper("selective", "", `
  nodeSelector: {kubernetes.io/os: linux, kubernetes.io/arch: `+runtime.GOARCH+`}`) +
		sleeper("foreign", "", `
  nodeSelector: {kubernetes.io/os: plan9}`))
	s.event("picky", "FailedScheduling", "didn't match Pod's node affinity/selector")
	s.event("foreign", "FailedScheduling", "didn't match Pod's node affinity/selector")
	s.running("selective")
	s.Kubectl(t, "label", "nodes", "--all", "example.org/"+s.ns+"=green")
	s.running("picky")
}

func TestPodsKeepAwayFromEachOther(t *testing.T) {
	s := newSpace(t)
	apart := `
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {role: leader}`
	s.apply(sleeper("first", "role: leader", apart))
	s.running("first")
	s.apply(sleeper("second", "role: leader", apart))
	s.event("second", "FailedScheduling", "didn't match pod anti-affinity rules")
	s.kubectl("delete", "pod", "first")
	s.running("second")
}

func TestPodsSeekEachOther(t *testing.T) {
	s := newSpace(t)
	s.apply(sleeper("follower", "", `
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {role: leader}`))
	s.event("follower", "FailedScheduling", "didn't match pod affinity rules")
	s.apply(sleeper("leader", "role: leader", ""))
	s.running("follower")
}

// Other tests' pods do not tolerate the taints, so this one runs alone.
func TestTaintsKeepPodsAwayThatDoNotTolerateThem(t *testing.T) {
	s := newSpaceAlone(t)
	s.apply(sleeper("resident", "", ""))
	s.running("resident")
	s.Kubectl(t, "taint", "nodes", "--all", "example.org/work=inside:NoSchedule")
	s.apply(sleeper("stranger", "", "") + sleeper("worker", "", `
  tolerations:
  - {key: example.org/work, operator: Equal, value: inside, effect: NoSchedule}`))
	s.running("worker")
	s.event("stranger", "FailedScheduling", "untolerated taint")
	s.running("resident")

	s.Kubectl(t, "taint", "nodes", "--all", "example.org/work:NoSchedule-")
	s.running("stranger")

	s.apply(sleeper("patient", "", `
  tolerations:
  - {key: example.org/leave, operator: Exists, effect: NoExecute}`))
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
	s.apply(sleeper("late", "", ""))
	s.event("late", "FailedScheduling", "unschedulable")
	s.Kubectl(t, "uncordon", node)
	s.running("late")
}

func TestImportantPodTakesTheRoomOfAnother(t *testing.T) {
	s := newSpace(t)
	s.Apply(t, "", `
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata:
  name: `+s.ns+`
value: 1000
`)
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "priorityclass", s.ns) })
	// A resource of this test's own, so that no other test lacks it.
	resource := "example.org/" + s.ns
	node := s.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	s.Kubectl(t, "patch", "node", node, "--subresource=status", "--type=merge", "--patch", `{"status": {"capacity": {"`+resource+`": "1"}, "allocatable": {"`+resource+`": "1"}}}`)
	room := `
    resources:
      limits: {` + resource + `: "1"}`
	s.apply(sleeper("usual", "", room))
	s.running("usual")
	s.apply(sleeper("important", "", room+"\n  priorityClassName: "+s.ns))
	s.running("important")
	s.WaitGone(t, s.ns, "usual")
}
