package e2e

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func restarts(n int32) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) > 0 && c[0].RestartCount >= n && harness.PodReady(p)
	}
}

func notReady(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && !harness.PodReady(p)
}

func TestReadinessTakesAPodOutOfItsService(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Service("web", kube.Port(80, 8080)), kube.Pod("web", kube.Testbox("serve", "--unready"), kube.Ready(kube.HTTP("/ready", 8080))))
	s.client()
	s.pod("web", "running but not ready", notReady)
	s.event("web", "Unhealthy", "503")
	if out, err := s.inErr("client", "testbox", "get", "http://web"); err == nil {
		t.Errorf("the Service led to a pod that was not ready: %s", out)
	}
	s.in("web", "testbox", "get", "--post", "http://localhost:8080/ready?ok=true")
	s.running("web")
	want(t, "the answer of the ready pod", s.fromPod("http://web"), "web")
	s.in("web", "testbox", "get", "--post", "http://localhost:8080/ready?ok=false")
	s.pod("web", "not ready again", notReady)
	s.WaitFor(t, "the Service to refuse", func(context.Context) (bool, error) {
		_, err := s.inErr("client", "testbox", "get", "http://web")
		return fails(err, "connection refused")
	})
}

func TestLivenessRestartsAContainer(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("by-http", kube.Serve(""), kube.Live(kube.HTTP("/healthz", 8080))),
		kube.Pod("by-exec", kube.Live(kube.Exec("test", "!", "-e", "/tmp/ill"))),
		kube.Pod("by-tcp", kube.Shell("testbox tcpecho --port 7 & echo $! > /tmp/pid; testbox sleep"), kube.Started(kube.TCP(7)), kube.Live(kube.TCP(7))),
	)
	for pod, illness := range map[string]string{
		"by-http": "testbox get --post http://localhost:8080/healthz?ok=false",
		"by-exec": "touch /tmp/ill",
		"by-tcp":  "kill $(cat /tmp/pid)",
	} {
		s.running(pod)
		s.in(pod, "sh", "-c", illness)
	}
	for _, pod := range []string{"by-http", "by-exec", "by-tcp"} {
		s.pod(pod, "restarted and ready", restarts(1))
		s.event(pod, "Unhealthy", "Liveness probe failed")
	}
}

func TestStartupProbeHoldsTheOthersBack(t *testing.T) {
	s := newSpace(t)
	up := kube.Exec("test", "-e", "/tmp/up")
	s.create(kube.Pod("slow", kube.Started(up), kube.Live(up)))
	s.event("slow", "Unhealthy", "Startup probe failed")
	s.in("slow", "touch", "/tmp/up")
	if pod := s.running("slow"); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the container was restarted before its startup probe had succeeded")
	}
}
