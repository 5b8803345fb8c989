package lifecycle

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const (
	// podMemory is what all pods of the small node have together.
	podMemory = 512 << 20
	// smallDisk gives the kubelet a disk of its own: 96 MiB for 4096 files.
	smallDisk = `set -e
truncate -s 96M /var/tmp/kubelet.img
mkfs.ext4 -q -F -O ^has_journal -m 0 -N 4096 /var/tmp/kubelet.img
mkdir -p /var/lib/kubelet
mount -o loop /var/tmp/kubelet.img /var/lib/kubelet`
)

// TestSmallNode is about a node of which a pod can use up everything.
func TestSmallNode(t *testing.T) {
	n := harness.Prepare(t, harness.Options{Args: []string{
		fmt.Sprintf("--kubelet-arg=system-reserved=memory=%d", memoryOfMachine(t)-podMemory),
		"--kubelet-arg=eviction-hard=memory.available<200Mi,nodefs.available<40Mi,nodefs.inodesFree<2000",
		"--kubelet-arg=eviction-pressure-transition-period=5s",
		// What is measured each minute otherwise.
		"--kubelet-arg=volume-stats-agg-period=1s",
		"--kubelet-arg=node-status-update-frequency=1s",
	}})
	n.Exec(t, "sh", "-c", smallDisk)
	n.Resume(t)
	t.Run("evicts who uses up its memory, disk or inodes, and nobody else", func(t *testing.T) { evicts(t, n) })
	t.Run("is drained of its pods and filled again", func(t *testing.T) { drained(t, n) })
	t.Run("is left by pods after the seconds that they tolerate", func(t *testing.T) { tolerated(t, n) })
}

func memoryOfMachine(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func evicts(t *testing.T, n *harness.Node) {
	ns := n.Namespace(t)
	before, err := n.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := kube.Mount("data", "/data", kube.Scratch())
	bounded := kube.Scratch()
	bounded.EmptyDir.SizeLimit = new(resource.MustParse("1Mi"))
	// Deaf to SIGTERM: a container that ends well has its pod succeed, evicted or
	// not.
	told, then := "until [ -e /tmp/go ]; do sleep 0.2; done; ", "; sleep 1000"
	// The kubelet ranks by figures that are some seconds old, and by requests
	// before these: only who is to go has more than it asked for, and has most of it
	// some seconds before it is too much.
	memory, disk := kube.Request("memory", "32Mi"), kube.Request("ephemeral-storage", "8Mi")
	n.Create(t, ns,
		kube.Pod("modest", kube.Limit("memory", "32Mi"), kube.Limit("cpu", "50m"), disk, data, kube.Shell("echo little > /data/file"+then)),
		kube.Pod("memory", disk, kube.Shell(told+"testbox alloc 350MiB"+then)),
		kube.Pod("disk", memory, data, kube.Shell(told+"dd if=/dev/zero of=/data/file bs=1M count=40; sleep 5; dd if=/dev/zero of=/data/more bs=1M count=24"+then)),
		kube.Pod("inodes", memory, disk, data, kube.Shell(told+"i=0; while [ $i -lt 3000 ]; do : > /data/$i; i=$((i+1)); [ $i != 1900 ] || sleep 5; done"+then)),
		kube.Pod("volume", memory, disk, kube.Mount("data", "/data", bounded), kube.Shell("dd if=/dev/zero of=/data/file bs=1M count=4"+then)),
		kube.Pod("layer", memory, kube.Limit("ephemeral-storage", "1Mi"), kube.Shell("dd if=/dev/zero of=/file bs=1M count=4"+then)),
	)
	modest := n.WaitPodRunning(t, ns, "modest")
	evicted := func(name, words string) {
		t.Helper()
		pod := n.WaitPod(t, ns, name, "evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if pod.Status.Reason != "Evicted" || !strings.Contains(pod.Status.Message, words) {
			t.Errorf("pod %s ended by %q: %s", name, pod.Status.Reason, pod.Status.Message)
		}
	}
	evicted("volume", `Usage of EmptyDir volume "data" exceeds the limit "1Mi"`)
	evicted("layer", "ephemeral local storage usage exceeds the total limit of containers 1Mi")
	for _, name := range []string{"memory", "disk", "inodes"} {
		n.WaitPodRunning(t, ns, name)
	}
	// By now the kubelet has figures of all of them. One after another: who uses
	// much disk is evicted for a lack of inodes, too.
	for _, next := range []struct{ pod, lacks string }{{"memory", "memory"}, {"disk", "ephemeral-storage"}, {"inodes", "inodes"}} {
		n.Kubectl(t, "exec", "-n", ns, next.pod, "--", "touch", "/tmp/go")
		evicted(next.pod, "The node was low on resource: "+next.lacks)
	}
	pressed(t, n, before.ResourceVersion)
	n.Create(t, ns, kube.Pod("late"))
	n.WaitPodRunning(t, ns, "late")
	if p := n.WaitPodRunning(t, ns, "modest"); p.UID != modest.UID || p.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Errorf("the modest pod suffered too: %+v", p.Status)
	}
}

// pressed waits until the node has told of pressure on memory and disk, by
// conditions and by taints that keep pods away, and of the end of both.
func pressed(t *testing.T, n *harness.Node, since string) {
	t.Helper()
	missing := map[string]bool{
		"condition MemoryPressure": true, "taint node.kubernetes.io/memory-pressure": true,
		"condition DiskPressure": true, "taint node.kubernetes.io/disk-pressure": true,
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nodes := &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return n.Client.CoreV1().Nodes().Watch(ctx, o)
	}}
	var now []string
	_, err := watchtools.Until(ctx, since, nodes, func(e watch.Event) (bool, error) {
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		now = nil
		for _, c := range node.Status.Conditions {
			if c.Type != corev1.NodeReady && c.Status == corev1.ConditionTrue {
				now = append(now, "condition "+string(c.Type))
			}
		}
		for _, taint := range node.Spec.Taints {
			now = append(now, "taint "+taint.Key)
		}
		for _, told := range now {
			delete(missing, told)
		}
		return len(missing) == 0 && len(now) == 0, nil
	})
	if err != nil {
		t.Fatalf("the node never told %v, and tells %v: %v", missing, now, err)
	}
}

func drained(t *testing.T, n *harness.Node) {
	ns := n.Namespace(t)
	n.Create(t, ns, kube.Deployment("web", 1), kube.DaemonSet("agent"), kube.Pod("lonely"))
	resident := n.WaitPods(t, ns, "app=agent", 1)[0]
	web := n.WaitPods(t, ns, "app=web", 1)[0]
	n.WaitPodRunning(t, ns, "lonely")

	drain := []string{"drain", "node", "--timeout=60s", "--pod-selector=app"}
	_, err := n.KubectlErr(drain...)
	for _, words := range []string{"DaemonSet-managed Pods", "declare no controller"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("kubectl drains a node without a word about %s: %v", words, err)
		}
	}
	n.Kubectl(t, append(drain, "--ignore-daemonsets", "--force", "--delete-emptydir-data")...)
	n.WaitGone(t, ns, web.Name)
	n.WaitGone(t, ns, "lonely")
	if p := n.WaitPods(t, ns, "app=agent", 1)[0]; p.UID != resident.UID {
		t.Error("the DaemonSet's pod was drained")
	}
	n.WaitPodsUntil(t, ns, "app=web", "wait for a node", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && unschedulable(pods[0], "unschedulable")
	})
	n.Kubectl(t, "uncordon", "node")
	n.WaitPods(t, ns, "app=web", 1)
}

// unschedulable tells whether the scheduler has said so, with these words.
func unschedulable(p *corev1.Pod, words string) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Reason == corev1.PodReasonUnschedulable && strings.Contains(c.Message, words)
		}
	}
	return false
}

func tolerated(t *testing.T, n *harness.Node) {
	ns := n.Namespace(t)
	for _, seconds := range []int64{1, 3600} {
		n.Create(t, ns, kube.Pod(fmt.Sprint("tolerates-", seconds), kube.Spec(func(p *corev1.PodSpec) {
			p.Tolerations = []corev1.Toleration{{
				Key: "example.org/leave", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			}}
		})))
	}
	n.Create(t, ns, kube.Pod("refuses"), kube.Pod("stays", kube.Tolerate("example.org/leave", "", corev1.TaintEffectNoExecute)))
	n.WaitPodsUntil(t, ns, "", "are ready", func(pods []*corev1.Pod) bool {
		for _, p := range pods {
			if !harness.PodReady(p) {
				return false
			}
		}
		return len(pods) == 4
	})
	n.Kubectl(t, "taint", "node", "node", "example.org/leave=now:NoExecute")
	n.WaitGone(t, ns, "refuses")
	n.WaitGone(t, ns, "tolerates-1")
	n.Kubectl(t, "taint", "node", "node", "example.org/leave:NoExecute-")
	n.WaitPodRunning(t, ns, "tolerates-3600")
	n.WaitPodRunning(t, ns, "stays")
}
