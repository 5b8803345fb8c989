package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestInitContainersRunInOrderBeforeTheOthers(t *testing.T) {
	s := newSpace(t)
	work := kube.Mount("work", "/work", kube.Scratch())
	s.create(
		kube.Pod("ordered", kube.Once, kube.Run("cat", "/work/order"), work,
			kube.Init("one", kube.Shell("echo one >> /work/order"), work),
			kube.Init("two", kube.Shell("echo two >> /work/order"), work)),
		kube.Pod("hindered", kube.Once, kube.Run("echo", "unreachable"), kube.Init("broken", kube.Testbox("exit", "1"))),
	)
	want(t, "the order", s.ended("ordered", corev1.PodSucceeded), "one\ntwo\n")
	s.pod("hindered", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	want(t, "what became of the main container", s.get("pod/hindered", ".status.containerStatuses[0].state.waiting.reason"), "PodInitializing")
}

func TestSidecarStartsFirstAndDoesNotHoldUpAJob(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Job("helped", kube.Testbox("get", "http://localhost:8080"),
		kube.Sidecar("sidecar", kube.Serve("sidecar"), kube.Started(kube.TCP(8080)))))
	s.waitUntil("job/helped", "condition=complete")
	want(t, "what the main container got", s.kubectl("logs", "job/helped", "-c", "helped"), "sidecar\n")
}

func TestContainersOfAPodShareVolumesAndNetwork(t *testing.T) {
	s := newSpace(t)
	size := resource.MustParse("8Mi")
	disk := kube.Mount("disk", "/disk", kube.Scratch())
	memory := kube.Mount("memory", "/memory", corev1.VolumeSource{
		EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size},
	})
	s.create(kube.Pod("pair", disk, memory,
		kube.Spec(func(p *corev1.PodSpec) { p.ShareProcessNamespace = new(true) }),
		kube.Shell("echo shared > /disk/file; echo quick > /memory/file; testbox serve"),
		kube.Container("reader", disk, memory, kube.Box(func(c *corev1.Container) { c.VolumeMounts[0].ReadOnly = true }))))
	s.running("pair")
	out := strings.TrimSpace(s.kubectl("exec", "pair", "-c", "reader", "--", "sh", "-c", `
testbox get http://localhost:8080 --retry 10s
cat /disk/file /memory/file
touch /disk/other 2>&1
grep -c 'tmpfs.*/memory.*size=8192k' /proc/mounts || grep /memory /proc/mounts
pidof testbox | wc -w`))
	lines := strings.Split(out, "\n")
	if !slices.Equal(lines, []string{"pair", "shared", "quick", "touch: /disk/other: Read-only file system", "1", "2"}) {
		t.Errorf("the reader saw %q", lines)
	}
}

func TestSecurityContextIsApplied(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("strict", kube.Mount("data", "/data", kube.Scratch()), kube.Spec(func(p *corev1.PodSpec) {
			p.SecurityContext = &corev1.PodSecurityContext{
				RunAsUser: new(int64(1000)), RunAsGroup: new(int64(2000)), FSGroup: new(int64(3000)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "80"}},
			}
		}), kube.Box(func(c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{
				ReadOnlyRootFilesystem: new(true), AllowPrivilegeEscalation: new(false),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}
		})),
		kube.Pod("loose", kube.Box(func(c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		})),
	)
	s.running("strict")
	want(t, "the strict container", s.in("strict", "sh", "-c", `
id -u; id -g
touch /data/file; stat -c %g /data/file
touch /file 2>&1
grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status
cat /proc/sys/net/ipv4/ip_unprivileged_port_start
unshare -m true 2>&1 || true`), strings.Join([]string{
		"1000", "2000", "3000", "touch: /file: Read-only file system",
		"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "80",
		"unshare: unshare(0x20000): Operation not permitted",
	}, "\n"))
	s.running("loose")
	want(t, "the privileged container", s.in("loose", "sh", "-c", "grep -E '^Seccomp:' /proc/self/status; unshare -m true && echo may"), "Seccomp:\t0\nmay")
}

func TestPodIsToldOfItsEnd(t *testing.T) {
	s := newSpace(t)
	tell := func(word string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo " + word + " > /proc/1/fd/1"}}}
	}
	s.create(kube.Pod("polite", kube.Grace(20), kube.Testbox("sigterm-log", "--grace=100ms"),
		kube.Box(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PostStart: tell("started"), PreStop: tell("stopping")}
		})))
	s.running("polite")
	follow := s.start("logs", "-f", "polite")
	s.kubectl("delete", "pod", "polite", "--timeout=60s")
	lines := follow.rest()
	want(t, "the order of the end", strings.Join(lines[max(0, len(lines)-3):], ","), "stopping,got SIGTERM,bye")
	if !slices.Contains(lines, "started") {
		t.Errorf("the hook after the start left nothing in %q", lines)
	}
}

func TestHostPortLeadsToItsPod(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("port", kube.Serve(""), kube.HostPort(18080), kube.Container("udp", kube.Echo(7000), kube.HostPort(17000))))
	s.client()
	s.running("port")
	want(t, "the answer on the node", s.fromNode("http://"+s.nodeAddr("18080")), "port")
	want(t, "the answer on localhost", s.fromNode("http://127.0.0.1:18080"), "port")
	want(t, "the answer to a pod", s.fromPod("http://"+s.nodeAddr("18080")), "port")
	want(t, "the answer to the pod itself", s.in("port", "testbox", "get", "http://"+s.nodeAddr("18080")), "port")
	want(t, "the UDP answer to a pod", s.in("client", "testbox", "send", "udp", s.nodeAddr("17000"), "ping"), "ping")
	s.echoes(s.nodeAddr("17000"))

	s.kubectl("delete", "pod", "port")
	s.WaitFor(t, "the port to be closed", func(ctx context.Context) (bool, error) {
		_, err := s.fetch(ctx, "http://"+s.nodeAddr("18080"))
		return fails(err, "connection refused")
	})
}

func TestPodOnTheHostsNetworkStillKnowsTheCluster(t *testing.T) {
	s := newSpace(t)
	s.create(append(web("inside"),
		kube.Pod("outside", kube.HostNetwork, kube.Testbox("serve", "--port=18090", "--body=outside")),
		kube.Service("outside", kube.Port(80, 18090)))...)
	s.client()
	pod := s.running("outside")
	want(t, "the pod's address", pod.Status.PodIP, s.Host.Addr().String())
	want(t, "the answer on the node", s.fromNode("http://127.0.0.1:18090"), "outside")
	want(t, "the answer through the Service", s.fromPod("http://outside"), "outside")
	want(t, "the answer to it", s.in("outside", "testbox", "get", "http://web", "--retry", "30s"), "inside")
}

func TestHostPathShowsTheNodesFiles(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note", "from the node\n")
	s.create(kube.Pod("reader", kube.Once, kube.Run("cat", "/node/note"), kube.Mount("node", "/node", kube.HostFolder("/root/"+s.ns))))
	want(t, "the output", s.ended("reader", corev1.PodSucceeded), "from the node\n")
}

func TestUnknownImageIsTold(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("lost", kube.Box(func(c *corev1.Container) {
		c.Image, c.ImagePullPolicy = "knarr.dev/nothing:1", corev1.PullNever
	})))
	s.event("lost", "ErrImageNeverPull", "is not present with pull policy of Never")
}
