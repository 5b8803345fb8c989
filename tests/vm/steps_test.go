package vm

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// scope is the cgroup of a pod's only container.
func scope(p *corev1.Pod) string {
	slice, name := "kubepods.slice", "kubepods"
	if q := p.Status.QOSClass; q != corev1.PodQOSGuaranteed {
		name += "-" + strings.ToLower(string(q))
		slice += "/" + name + ".slice"
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	return fmt.Sprintf("/sys/fs/cgroup/%s/%s-pod%s.slice/cri-containerd-%s.scope", slice, name, strings.ReplaceAll(string(p.UID), "-", "_"), id)
}

func (n *node) boots(t *testing.T) {
	n.sh(t, "systemctl is-system-running --wait || test \"$(systemctl is-system-running)\" = degraded")
	if fs := n.sh(t, "stat -fc %T /sys/fs/cgroup"); fs != "cgroup2fs" {
		t.Errorf("/sys/fs/cgroup is %s", fs)
	}
	if init := n.sh(t, "cat /proc/1/comm"); init != "systemd" {
		t.Errorf("process 1 is %s", init)
	}
	n.results.machine = "Debian " + n.sh(t, "cat /etc/debian_version") + ", Linux " + n.sh(t, "uname -r") + " on one virtual processor"
}

func (n *node) checks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.run(ctx, nil, exe, "check", "-o", "json")
	if err != nil && strings.Contains(err.Error(), "unknown command") {
		t.Skip("this Knarr has no check")
	}
	// Warnings may be: the machine has no name server that answers.
	if !strings.Contains(out, `"level"`) || regexp.MustCompile(`"level":\s*"error"`).MatchString(out) {
		t.Errorf("a fresh Debian has errors: %v\n%s", err, out)
	}
}

func (n *node) starts(t *testing.T) {
	n.sh(t, "mkdir -p /var/lib/knarr/agent/images "+evidence+" && cp /payload/test.tar /var/lib/knarr/agent/images/ && "+
		"cp /payload/knarr.service /etc/systemd/system/ && systemctl daemon-reload && systemctl enable knarr && systemctl start knarr")
	var err error
	if n.cluster, err = n.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes, err := n.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes.Items) != 1 || !slices.ContainsFunc(nodes.Items[0].Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}) {
		t.Errorf("the unit is active, but the nodes are %+v", nodes.Items)
	}
}

func (n *node) runsPods(t *testing.T) {
	if _, err := n.AppsV1().Deployments("default").Create(t.Context(), kube.Deployment("web", 1, kube.Serve("hello")), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CoreV1().Services("default").Create(t.Context(), kube.Service("web", kube.Port(80, 8080)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.create(t, kube.Pod("plain"))
	n.create(t, kube.Pod("bounded", kube.Limit(corev1.ResourceMemory, "64Mi"), kube.Limit(corev1.ResourceCPU, "200m")))
	n.waitPods(t, "the first pods", func(p pods) bool {
		return p.ready("plain") && p.ready("bounded") && p.readyOf("web", time.Time{}) == 1
	})
	n.reaches(t, "plain")
}

func (n *node) slices(t *testing.T) {
	all := n.waitPods(t, "pods", func(pods) bool { return true })
	bounded, plain := scope(all["bounded"]), scope(all["plain"])
	for file, want := range map[string]string{
		bounded + "/memory.max": strconv.Itoa(64 << 20), bounded + "/cpu.max": "20000 100000",
		plain + "/memory.max": "max",
	} {
		if got := n.sh(t, "cat "+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	for _, s := range []string{bounded, plain} {
		if state := n.sh(t, "systemctl is-active "+filepath.Base(s)); state != "active" {
			t.Errorf("for systemd %s is %s", filepath.Base(s), state)
		}
	}
	n.create(t, kube.Pod("greedy", kube.Once, kube.Testbox("alloc", "200Mi"), kube.Limit(corev1.ResourceMemory, "64Mi")))
	n.waitPods(t, "the end of a container that takes more than its limit", func(p pods) bool {
		pod := p["greedy"]
		return pod != nil && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Terminated != nil &&
			pod.Status.ContainerStatuses[0].State.Terminated.Reason == "OOMKilled"
	})
}

func (n *node) oomScores(t *testing.T) {
	if got := n.sh(t, "cat /proc/$(systemctl show --value -p MainPID knarr)/oom_score_adj"); got != "-999" {
		t.Errorf("Knarr's oom_score_adj is %s, want -999", got)
	}
	all := n.waitPods(t, "pods", func(pods) bool { return true })
	for pod, want := range map[string]string{"bounded": "-997", "plain": "1000"} {
		if got := n.sh(t, "cat /proc/$(head -n 1 "+scope(all[pod])+"/cgroup.procs)/oom_score_adj"); got != want {
			t.Errorf("oom_score_adj of pod %s is %s, want %s", pod, got, want)
		}
	}
	for _, shim := range strings.Fields(n.sh(t, "for p in $(pgrep -f containerd-shim-runc-v2); do cat /proc/$p/oom_score_adj; done")) {
		if number(t, shim) > -900 {
			t.Errorf("oom_score_adj of a shim is %s", shim)
		}
	}
}

// containers are the ids of the containers of pods, and how often they restarted.
func containers(all pods, names ...string) string {
	var text string
	for _, name := range names {
		s := all[name].Status.ContainerStatuses[0]
		text += fmt.Sprintf("%s %s %d\n", name, s.ContainerID, s.RestartCount)
	}
	return text
}

func (n *node) restarts(t *testing.T) {
	before := containers(n.waitPods(t, "pods", func(pods) bool { return true }), "plain", "bounded")
	pid := n.sh(t, "systemctl show --value -p MainPID knarr")
	n.sh(t, "systemctl restart knarr")
	n.hangUp()
	if now := n.sh(t, "systemctl show --value -p MainPID knarr"); now == pid {
		t.Error("it was not restarted")
	}
	all := n.waitPods(t, "pods", func(p pods) bool { return p.ready("plain") && p.ready("bounded") })
	if after := containers(all, "plain", "bounded"); after != before {
		t.Errorf("containers before\n%safter\n%s", before, after)
	}
	n.reaches(t, "plain")
}

func (n *node) clockJumps(t *testing.T) {
	before := containers(n.waitPods(t, "pods", func(pods) bool { return true }), "plain", "bounded")
	pid := n.sh(t, "systemctl show --value -p MainPID knarr")
	for _, jump := range []struct {
		pod      string
		by       string
		replicas int32
	}{{"tomorrow", "+1 day", 2}, {"today", "-1 day", 3}} {
		n.sh(t, "date -s \"$(date -d '"+jump.by+"')\"")
		from := n.now(t)
		n.waitHeartbeat(t, from.Add(-time.Second), from.Add(day/2))
		n.create(t, kube.Pod(jump.pod))
		// That controllers, the scheduler and the kubelet all go on shows in new pods.
		scale, err := n.AppsV1().Deployments("default").GetScale(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		scale.Spec.Replicas = jump.replicas
		if _, err := n.AppsV1().Deployments("default").UpdateScale(t.Context(), "web", scale, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		n.waitPods(t, "pods made after a jump of the clock by "+jump.by, func(p pods) bool {
			return p.ready(jump.pod) && p.readyOf("web", time.Time{}) == int(jump.replicas)
		})
		n.reaches(t, jump.pod)
	}
	// One that began in what is the future now ends, and has a successor.
	all := n.waitPods(t, "pods", func(pods) bool { return true })
	n.sh(t, "kill -KILL $(head -n 1 "+scope(all["tomorrow"])+"/cgroup.procs)")
	all = n.waitPods(t, "the second container of a pod made tomorrow", func(p pods) bool {
		return p["tomorrow"].Status.ContainerStatuses[0].RestartCount == 1 && p.ready("tomorrow")
	})
	if after := containers(all, "plain", "bounded"); after != before {
		t.Errorf("containers before\n%safter\n%s", before, after)
	}
	if now := n.sh(t, "systemctl show --value -p MainPID knarr"); now != pid {
		t.Error("Knarr was restarted")
	}
}

// booted waits until the machine runs another boot, and Knarr in it. It returns
// when that was, by the machine's clock.
func (n *node) booted(t *testing.T, before string) time.Time {
	t.Helper()
	n.hangUp()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := n.settle(ctx, before); err != nil {
		t.Fatal(err)
	}
	// The unit is enabled; start waits until it is ready.
	n.sh(t, "systemctl start knarr")
	n.hangUp()
	return time.Unix(int64(number(t, n.sh(t, "echo $(($(date +%s) - $(cut -d. -f1 /proc/uptime)))"))), 0)
}

func (n *node) bootID(t *testing.T) string {
	t.Helper()
	return n.sh(t, "cat /proc/sys/kernel/random/boot_id")
}

func (n *node) reboots(t *testing.T) {
	n.create(t, kube.Pod("orderly", kube.Grace(60), kube.Mount("evidence", "/evidence", kube.HostFolder(evidence)),
		kube.Shell("trap 'sleep 2; echo done >/evidence/ended; sync; exit 0' TERM; echo begun >/evidence/begun; while :; do sleep 1; done")))
	n.waitPods(t, "a pod that takes its time to end", func(p pods) bool { return p.ready("orderly") })
	n.waitFile(t, evidence+"/begun")
	if held := n.sh(t, "systemd-inhibit --list --no-pager --no-legend"); !strings.Contains(held, "shutdown") || !strings.Contains(held, "delay") {
		t.Errorf("nobody holds back the shutdown:\n%s", held)
	}
	boot := n.bootID(t)
	n.sh(t, "systemctl reboot")
	at := n.booted(t, boot)

	if got := n.sh(t, "cat "+evidence+"/ended || true"); got != "done" {
		t.Error("the pod was not given the time to end")
	}
	n.waitPods(t, "the Deployment's pods of a new boot", func(p pods) bool { return p.readyOf("web", at) == 3 })
	// Whether a pod is over or begins anew depends on whether the kubelet could
	// still say so before it ended, too; how it went is known either way.
	n.waitPods(t, "the record of a pod that ended in order", func(p pods) bool { return endedWell(p["orderly"]) })
	n.create(t, kube.Pod("asking"))
	n.waitPods(t, "a new pod", func(p pods) bool { return p.ready("asking") })
	n.reaches(t, "asking")
}

// endedWell tells whether the first run of a pod's container was a success.
func endedWell(p *corev1.Pod) bool {
	if p == nil || len(p.Status.ContainerStatuses) != 1 {
		return false
	}
	s := p.Status.ContainerStatuses[0]
	end := s.State.Terminated
	if s.RestartCount > 0 {
		end = s.LastTerminationState.Terminated
	}
	return end != nil && end.ExitCode == 0
}

func (n *node) waitFile(t *testing.T, path string) {
	t.Helper()
	n.sh(t, "until test -e "+path+"; do sleep 1; done")
}

func (n *node) powerCut(t *testing.T) {
	all := n.waitPods(t, "pods", func(p pods) bool { return p.ready("asking") })
	uid := all["asking"].UID
	boot := n.bootID(t)
	if err := n.reset(); err != nil {
		t.Fatal(err)
	}
	at := n.booted(t, boot)
	all = n.waitPods(t, "the pods of before", func(p pods) bool {
		return p.readyOf("asking", at) == 1 && p.readyOf("web", at) == 3
	})
	if p := all["asking"]; p.UID != uid || p.Status.ContainerStatuses[0].RestartCount == 0 {
		t.Errorf("it is another pod, or its container was not started anew:\n%s", describe(pods{"asking": p}))
	}
	n.reaches(t, "asking")
}

func (n *node) exhausted(t *testing.T) {
	pid := n.sh(t, "systemctl show --value -p MainPID knarr")
	all := number(t, n.sh(t, "echo $(($(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo) * 1024))"))
	if got := number(t, n.sh(t, "cat /sys/fs/cgroup/kubepods.slice/memory.max")); got > all-512<<20 {
		t.Errorf("pods may take %d bytes of %d", got, all)
	}
	web := n.waitPods(t, "pods", func(pods) bool { return true }).readyOf("web", time.Time{})
	n.create(t, kube.Pod("all", kube.Once, kube.Testbox("alloc", "8Gi")))
	n.waitPods(t, "the end of a pod that takes all memory", func(p pods) bool {
		return p["all"] != nil && p["all"].Status.Phase == corev1.PodFailed
	})
	if now := n.sh(t, "systemctl show --value -p MainPID knarr"); now != pid {
		t.Error("Knarr was killed")
	}
	n.waitPods(t, "the other pods", func(p pods) bool { return p.readyOf("web", time.Time{}) == web })
}
