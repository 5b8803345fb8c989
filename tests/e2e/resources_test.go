package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestProcessorLimitThrottlesABusyContainer(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("busy", kube.Shell("while :; do :; done"), kube.Limit("cpu", "100m")))
	s.running("busy")
	s.WaitFor(t, "the kernel to throttle it", func(context.Context) (bool, error) {
		// The same in either version of cgroups.
		out, err := s.inErr("busy", "sh", "-c", "cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null | grep nr_throttled")
		if err != nil {
			return false, err
		}
		n, err := strconv.Atoi(strings.TrimPrefix(out, "nr_throttled "))
		return n > 0, err
	})
}

func TestClassesOfServiceHaveCgroupsOfTheirOwn(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("guaranteed", kube.Limit("cpu", "20m"), kube.Limit("memory", "64Mi"),
			kube.Container("second", kube.Limit("cpu", "20m"), kube.Limit("memory", "32Mi"))),
		kube.Pod("burstable", kube.Request("memory", "32Mi")),
		kube.Pod("besteffort"),
	)
	var scores []int
	for _, name := range []string{"guaranteed", "burstable", "besteffort"} {
		pod := s.running(name)
		// systemd's names have other letters between the parts of the UID.
		pattern := "*pod" + strings.ReplaceAll(string(pod.UID), "-", "?") + "*"
		// Cgroups of other pods come and go while find looks around.
		dirs := strings.Fields(s.Exec(t, "sh", "-c", `find /sys/fs/cgroup -type d -name "$1" -prune 2>/dev/null; true`, "sh", pattern))
		if len(dirs) == 0 {
			t.Errorf("the %s pod has no cgroup", name)
		}
		for _, dir := range dirs {
			for _, class := range []string{"burstable", "besteffort"} {
				if strings.Contains(dir, class) != (name == class) {
					t.Errorf("the cgroup of the %s pod is %s", name, dir)
				}
			}
			wantPart(t, "the cgroup", dir, "kubepods")
		}
		if name == "guaranteed" {
			script := `for d; do cat $d/memory.max $d/memory.limit_in_bytes 2>/dev/null; done; true`
			bound := s.Exec(t, append([]string{"sh", "-c", script, "sh"}, dirs...)...)
			wantPart(t, "the bound of both containers together", bound, fmt.Sprint(96<<20))
		}
		score, err := strconv.Atoi(s.in(name, "cat", "/proc/1/oom_score_adj"))
		if err != nil {
			t.Fatal(err)
		}
		scores = append(scores, score)
	}
	// Without CAP_SYS_RESOURCE no score can be lower than Knarr's own.
	if scores[0] > scores[1] || scores[1] >= scores[2] || scores[2] != 1000 {
		t.Errorf("the kernel is told to kill by the scores %d", scores)
	}
}

func TestPodsDoNotGetAllOfTheMemory(t *testing.T) {
	s := newSpace(t)
	nodes, err := s.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const reserved, evictedAt = 300 << 20, 100 << 20
	all := nodes.Items[0].Status.Capacity.Memory().Value()
	for what, of := range map[string]struct{ got, want int64 }{
		"what pods can ask for": {nodes.Items[0].Status.Allocatable.Memory().Value(), all - reserved - evictedAt},
		"what they get together": {func() int64 {
			script := `cat $(find /sys/fs/cgroup -type d -name 'kubepods*' -prune 2>/dev/null | sed 's,$,/memory.max,p; s,max$,limit_in_bytes,') 2>/dev/null | grep -v max | sort -n | head -1`
			n, err := strconv.ParseInt(strings.TrimSpace(s.Exec(t, "sh", "-c", script)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}(), all - reserved},
	} {
		// The kernel counts in pages.
		if of.got < of.want-4096 || of.got > of.want {
			t.Errorf("%s: %d bytes, wanted %d", what, of.got, of.want)
		}
	}
}

func TestRangesOfANamespaceRefuseWhatLiesOutside(t *testing.T) {
	s := newSpace(t)
	list := func(memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	s.create(&corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "ranges"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypeContainer, Min: list("16Mi"), Max: list("64Mi"), MaxLimitRequestRatio: list("2")},
		{Type: corev1.LimitTypePod, Max: list("96Mi")},
	}}})
	refused := func(words string, opts ...kube.Option) {
		t.Helper()
		s.WaitFor(t, "the refusal "+words, func(ctx context.Context) (bool, error) {
			_, err := s.Client.CoreV1().Pods(s.ns).Create(ctx, kube.Pod("outside", opts...), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return fails(err, words)
		})
	}
	refused("minimum memory usage per Container is 16Mi", kube.Limit("memory", "8Mi"))
	refused("maximum memory usage per Container is 64Mi", kube.Limit("memory", "128Mi"))
	refused("memory max limit to request ratio per Container is 2", kube.Limit("memory", "64Mi"), kube.Request("memory", "16Mi"))
	refused("maximum memory usage per Pod is 96Mi", kube.Limit("memory", "64Mi"), kube.Container("second", kube.Limit("memory", "64Mi")))
	s.create(kube.Pod("within", kube.Limit("memory", "64Mi"), kube.Request("memory", "32Mi")))
	s.running("within")
}

// quota has names and quantities, which take turns.
func quota(name string, scopes []corev1.ResourceQuotaScope, hard ...string) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ResourceQuotaSpec{Scopes: scopes, Hard: corev1.ResourceList{}}}
	for i := 0; i < len(hard); i += 2 {
		q.Spec.Hard[corev1.ResourceName(hard[i])] = resource.MustParse(hard[i+1])
	}
	return q
}

func TestQuotaCountsWhatIsUsedAndWhatIsFreed(t *testing.T) {
	s := newSpace(t)
	s.create(quota("room", nil, "requests.memory", "64Mi", "limits.memory", "128Mi", "count/deployments.apps", "1"))
	s.waitUntil("resourcequota/room", `jsonpath={.status.hard.count/deployments\.apps}=1`)
	web := func(replicas int32) {
		t.Helper()
		s.create(kube.Deployment("web", replicas, kube.Request("memory", "32Mi"), kube.Limit("memory", "64Mi")))
	}
	web(3)
	s.pods("app=web", 2)
	want(t, "what is used", s.get("resourcequota/room", ".status.used.requests\\.memory"), "64Mi")
	s.waitUntil("deployment/web", "condition=ReplicaFailure")
	wantPart(t, "what the Deployment says", s.get("deployment/web", ".status.conditions[?(@.type=='ReplicaFailure')].message"), "exceeded quota: room")
	_, err := s.kubectlErr("create", "deployment", "second", "--image="+kube.Image)
	if done, err := fails(err, "exceeded quota: room"); !done {
		t.Error("a second Deployment", err)
	}
	_, err = s.kubectlErr("run", "boundless", "--image="+kube.Image)
	if done, err := fails(err, "must specify limits.memory"); !done {
		t.Error("a pod without a limit", err)
	}

	web(1)
	s.pods("app=web", 1)
	s.waitUntil("resourcequota/room", `jsonpath={.status.used.requests\.memory}=32Mi`)
	s.create(kube.Pod("other", kube.Request("memory", "32Mi"), kube.Limit("memory", "32Mi")))
	s.running("other")
}

func TestQuotaOfAScopeCountsOnlyWhatIsInIt(t *testing.T) {
	s := newSpace(t)
	s.create(
		quota("besteffort", []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}, "pods", "1"),
		quota("terminating", []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}, "pods", "0"),
	)
	s.waitUntil("resourcequota/besteffort", "jsonpath={.status.hard.pods}=1")
	s.waitUntil("resourcequota/terminating", "jsonpath={.status.hard.pods}=0")
	s.create(kube.Pod("asking", kube.Request("memory", "8Mi")), kube.Pod("modest"))
	want(t, "how many are counted", s.get("resourcequota/besteffort", ".status.used.pods"), "1")
	for name, opts := range map[string][]kube.Option{
		"besteffort":  nil,
		"terminating": {kube.Request("memory", "8Mi"), kube.Spec(func(p *corev1.PodSpec) { p.ActiveDeadlineSeconds = new(int64(60)) })},
	} {
		_, err := s.Client.CoreV1().Pods(s.ns).Create(t.Context(), kube.Pod("beyond", opts...), metav1.CreateOptions{})
		if done, err := fails(err, "exceeded quota: "+name); !done {
			t.Error(err)
		}
	}
}

func TestPodThatMayNotDisplaceOthersWaitsForItsTurn(t *testing.T) {
	s := newSpace(t)
	s.create(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Value: 1000, PreemptionPolicy: new(corev1.PreemptNever)})
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "priorityclass", s.ns) })
	room := s.ownResource()
	s.create(kube.Pod("usual", room))
	s.running("usual")
	s.create(kube.Pod("polite", room, kube.Spec(func(p *corev1.PodSpec) { p.PriorityClassName = s.ns })))
	s.event("polite", "FailedScheduling", "Insufficient")
	want(t, "the priority", s.get("pod/polite", ".spec.priority"), "1000")
	s.running("usual")
	s.kubectl("delete", "pod", "usual")
	s.running("polite")
}

// No machine has so many, whatever its kernel can do.
func TestPodWaitsForHugePagesThatTheNodeLacks(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("vast", kube.Limit("hugepages-2Mi", "1Ti"), kube.Limit("memory", "16Mi")))
	s.event("vast", "FailedScheduling", "Insufficient hugepages-2Mi")
	want(t, "the phase", s.get("pod/vast", ".status.phase"), "Pending")
}
