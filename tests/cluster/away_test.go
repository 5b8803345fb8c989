package cluster

import (
	"context"
	"flag"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

var away = flag.Duration("away", 0, "for how long TestServerIsAway leaves a node without its server; 0 leaves the test out")

// The server is gone for longer than it takes to declare a node lost and to
// evict its pods. Upstream's clocks: node-monitor-grace-period 50 s, and 300 s
// that a pod tolerates a node that is not ready.
func TestServerIsAway(t *testing.T) {
	if *away == 0 {
		t.Skip("make away")
	}
	server := harness.Start(t, harness.Options{})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("web", kube.On("edge-1"), kube.Serve("here")), kube.Service("web", kube.For("web"), kube.Port(80, 8080)))
	before := server.WaitPodRunning(t, ns, "web")
	svc, err := server.Client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const box = "/root/testbox"
	harness.CopyFile(t, harness.Testbox(t), agent.Host.Path(box), 0o755)
	answers := func() {
		t.Helper()
		agent.WaitFor(t, "the Service's answer", func(ctx context.Context) (bool, error) {
			_, err := agent.ExecErr(ctx, box, "get", "--timeout", "2s", "http://"+svc.Spec.ClusterIP)
			return err == nil, err
		})
	}
	answers()
	server.Stop(t)
	for end := time.Now().Add(*away); time.Now().Before(end); time.Sleep(15 * time.Second) {
		answers()
	}
	server.Resume(t)
	waitNode(t, server, "edge-1", corev1.ConditionTrue)
	server.Create(t, ns, kube.Pod("new", kube.On("edge-1"), kube.Serve("")))
	server.WaitPodRunning(t, ns, "new")
	answers()
	after := server.WaitPodRunning(t, ns, "web")
	if is, was := after.Status.ContainerStatuses[0], before.Status.ContainerStatuses[0]; after.UID != before.UID || is.ContainerID != was.ContainerID || is.RestartCount != was.RestartCount {
		t.Errorf("the pod was restarted: %+v", is)
	}
	node, err := server.Client.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) != 0 {
		t.Errorf("the node's taints: %v", node.Spec.Taints)
	}
}
