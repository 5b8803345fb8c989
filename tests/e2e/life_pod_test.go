package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestPauseContainerHoldsThePodsNamespaces(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("shared", kube.Serve(""), kube.Spec(func(p *corev1.PodSpec) { p.ShareProcessNamespace = new(true) })),
		kube.Pod("own", kube.Serve("")),
	)
	address := s.running("shared").Status.PodIP
	s.running("own")
	want(t, "the first process of a pod that shares them", s.in("shared", "cat", "/proc/1/comm"), "pause")
	want(t, "the first process of a container", s.in("own", "cat", "/proc/1/comm"), "testbox")

	const spaces = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done"
	before := s.in("shared", "sh", "-c", spaces)
	_, _ = s.inErr("shared", "sh", "-c", "kill -9 $(pidof testbox)") // the shell may die with its container
	again := s.pod("shared", "restarted and ready", restarts(1))
	want(t, "the namespaces after a restart", s.in("shared", "sh", "-c", spaces), before)
	want(t, "the address after a restart", again.Status.PodIP, address)
	// Orphans become children of pause, which reaps them.
	s.in("shared", "sh", "-c", "sh -c 'sleep 0.1 & exit'")
	s.WaitFor(t, "the orphan to be reaped", func(context.Context) (bool, error) {
		out, err := s.inErr("shared", "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true")
		return out == "", err
	})
}

func TestPodKnowsItsNames(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Service("group", kube.For("plain"), kube.Headless, kube.Port(80, 80)),
		kube.Pod("plain"),
		kube.Pod("named", kube.Label("app", "plain"), kube.Spec(func(p *corev1.PodSpec) {
			p.Hostname, p.Subdomain = "flagship", "group"
			p.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"seven", "seven.example.org"}}}
		})),
		kube.Pod("full", kube.Spec(func(p *corev1.PodSpec) { p.Subdomain, p.SetHostnameAsFQDN = "group", new(true) })),
		kube.Pod("host", kube.HostNetwork),
	)
	ip := s.running("named").Status.PodIP
	for _, pod := range []string{"plain", "full", "host"} {
		s.running(pod)
	}
	const name = "/proc/sys/kernel/hostname"
	zone := ".group." + s.ns + ".svc.cluster.local"
	want(t, "the name of a plain pod", s.in("plain", "cat", name), "plain")
	want(t, "the name of one that chose it", s.in("named", "cat", name), "flagship")
	want(t, "the name of one that wants all of it", s.in("full", "cat", name), "full"+zone)
	want(t, "the name of one on the host's network", s.in("host", "cat", name), strings.TrimSpace(s.Exec(t, "hostname")))
	hosts := s.in("named", "cat", "/etc/hosts")
	wantPart(t, "/etc/hosts", hosts, ip+"\tflagship"+zone+"\tflagship\n")
	wantPart(t, "/etc/hosts", hosts, "192.0.2.7\tseven\tseven.example.org")
	want(t, "the address of its full name", s.in("plain", "testbox", "lookup", "flagship"+zone, "a", "--retry", "30s"), ip)
}

func TestProbesAskByGRPC(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("typed", kube.Testbox("grpc-health", "--port=9090"),
		kube.Started(kube.GRPC(9090, "")), kube.Ready(kube.GRPC(9090, "ready")), kube.Live(kube.GRPC(9090, "live")),
		kube.Box(func(c *corev1.Container) {
			// A machine at its limit may be slow to answer, which is not what is asked here.
			c.StartupProbe.TimeoutSeconds, c.ReadinessProbe.TimeoutSeconds, c.LivenessProbe.TimeoutSeconds = 20, 20, 20
		})))
	s.running("typed")
	turn := func(service, ok string) {
		s.in("typed", "testbox", "get", "--post", "http://localhost:9090/?service="+service+"&ok="+ok)
	}
	turn("ready", "false")
	s.pod("typed", "not ready", notReady)
	s.event("typed", "Unhealthy", "Readiness probe failed")
	turn("ready", "true")
	s.running("typed")
	turn("live", "false")
	s.pod("typed", "restarted and ready", restarts(1))
	s.event("typed", "Unhealthy", "Liveness probe failed")
}

func TestProbeMayAskForAnotherGraceThanThePods(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("stubborn", kube.Grace(3600), kube.Shell("trap '' TERM; while :; do sleep 1; done"),
		kube.Live(kube.Exec("test", "!", "-e", "/tmp/ill")), kube.Box(func(c *corev1.Container) {
			c.LivenessProbe.TerminationGracePeriodSeconds = new(int64(1))
		})))
	s.running("stubborn")
	s.in("stubborn", "touch", "/tmp/ill")
	s.pod("stubborn", "restarted", restarts(1))
	s.kubectl("delete", "pod", "stubborn", "--grace-period=0", "--force")
}

// limits are those of CPU and memory as the container's cgroup has them, the
// same in either version of cgroups.
const limits = `
cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us)
cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes`

func TestContainersAreResizedInPlace(t *testing.T) {
	s := newSpace(t)
	sized := func(restart corev1.ResourceResizeRestartPolicy) kube.Option {
		return kube.Box(func(c *corev1.Container) {
			c.ResizePolicy = []corev1.ContainerResizePolicy{
				{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.NotRequired},
				{ResourceName: corev1.ResourceMemory, RestartPolicy: restart},
			}
		})
	}
	size := []kube.Option{kube.Request("cpu", "20m"), kube.Limit("cpu", "100m"), kube.Request("memory", "32Mi"), kube.Limit("memory", "64Mi")}
	s.create(
		kube.Pod("inplace", append(size, sized(corev1.NotRequired))...),
		kube.Pod("restarting", append(size, sized(corev1.RestartContainer))...),
	)
	for pod, restarted := range map[string]int32{"inplace": 0, "restarting": 1} {
		s.running(pod)
		want(t, "the limits before", s.in(pod, "sh", "-c", limits), "10000 100000\n67108864")
		s.kubectl("patch", "pod", pod, "--subresource=resize", "--patch",
			`{"spec": {"containers": [{"name": "`+pod+`", "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}}}]}}`)
		s.WaitFor(t, "the new limits in "+pod, func(context.Context) (bool, error) {
			out, err := s.inErr(pod, "sh", "-c", limits)
			return out == "20000 100000\n134217728", err
		})
		now := s.pod(pod, "resized", func(p *corev1.Pod) bool {
			c := p.Status.ContainerStatuses
			return len(c) == 1 && c[0].Resources != nil && c[0].Resources.Limits.Memory().String() == "128Mi" && c[0].RestartCount == restarted
		})
		want(t, "the CPU asked for", now.Status.ContainerStatuses[0].Resources.Requests.Cpu().String(), "50m")
	}
	_, err := s.kubectlErr("patch", "pod", "inplace", "--subresource=resize", "--patch",
		`{"spec": {"containers": [{"name": "inplace", "resources": {"requests": {"cpu": "1000"}, "limits": {"cpu": "1000"}}}]}}`)
	if err == nil || !strings.Contains(err.Error(), "node didn't have enough allocatable resources: cpu") {
		t.Errorf("a size that the node does not have: %v", err)
	}
}

func TestDebugContainerSeesTheProcessesOfItsTarget(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("patient", kube.Serve(""), kube.Container("other", kube.Run("tail", "-f", "/dev/null"))))
	s.running("patient")
	s.kubectl("debug", "patient", "--image=knarr.dev/test:1", "--container=doctor", "--target=patient", "--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '")
	s.pod("patient", "examined", func(p *corev1.Pod) bool {
		c := p.Status.EphemeralContainerStatuses
		return len(c) == 1 && c[0].State.Terminated != nil
	})
	wantPart(t, "what the debug container saw", s.kubectl("logs", "patient", "-c", "doctor"), "testbox serve --port=8080")
	// A copy leaves the original alone.
	s.kubectl("debug", "patient", "--copy-to=copy", "--image=knarr.dev/test:1", "--container=doctor", "--share-processes", "--", "testbox", "sleep")
	if copied := s.running("copy"); len(copied.Status.ContainerStatuses) != 3 {
		t.Errorf("the copy has the containers %v", copied.Status.ContainerStatuses)
	}
	wantPart(t, "what the copy's debug container sees", s.kubectl("exec", "copy", "-c", "doctor", "--", "sh", "-c", "cat /proc/[0-9]*/comm"), "pause")
}
