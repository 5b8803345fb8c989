package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A box far away: its server goes, its power fails, and it works on.
func TestNodeLivesWithoutItsServer(t *testing.T) {
	server := harness.Start(t, harness.Options{})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Secret("key", "word", "open sesame"), kube.ConfigMap("settings", "colour", "green"),
		kube.Pod("web", kube.On("edge-1"), kube.Shell(`testbox serve --port=8080 --body="$(cat /secret/word) $(cat /settings/colour) $(test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token)"`),
			kube.Expose("http", 8080), kube.Mount("secret", "/secret", kube.Secrets("key")), kube.Mount("settings", "/settings", kube.Settings("settings"))),
		kube.Service("web", kube.For("web"), kube.Port(80, 8080)),
		kube.Pod("gone", kube.On("edge-1"), kube.Serve("to be deleted")))
	// The reboot gives pods addresses in the order in which they start: others than
	// they had, or each other's.
	others := map[string]string{"one": "", "two": "", "three": ""}
	for name := range others {
		server.Create(t, ns, kube.Pod(name, kube.On("edge-1"), kube.Serve("this is "+name)), kube.Service(name, kube.For(name), kube.Port(80, 8080)))
	}
	before := server.WaitPodRunning(t, ns, "web")
	server.WaitPodRunning(t, ns, "gone")
	for name := range others {
		server.WaitPodRunning(t, ns, name)
		s, err := server.Client.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		others[name] = "http://" + s.Spec.ClusterIP
	}
	svc, err := server.Client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const box = "/root/testbox"
	harness.CopyFile(t, harness.Testbox(t), agent.Host.Path(box), 0o755)
	const answer = "open sesame green token"
	answers := func(what string, command ...string) {
		t.Helper()
		agent.WaitFor(t, what, func(ctx context.Context) (bool, error) {
			out, err := agent.ExecErr(ctx, append([]string{box}, command...)...)
			return strings.Contains(out, answer) || strings.Contains(out, svc.Spec.ClusterIP), err
		})
	}
	lookup := []string{"lookup", "web." + ns + ".svc.cluster.local", "--server", "10.43.0.10:53"}
	byService := []string{"get", "--timeout", "2s", "http://" + svc.Spec.ClusterIP}
	answers("the Service's answer", byService...)
	answers("the Service's name", lookup...)
	// What a pod needs is on disk two seconds after it came, EndpointSlices after 30.
	time.Sleep(35 * time.Second)

	server.Stop(t)
	agent.WaitFor(t, "the node to notice", func(ctx context.Context) (bool, error) {
		r, err := agent.StatusErr(ctx)
		return err == nil && r.Agent.Offline, err
	})
	answers("the Service's answer without a server", byService...)
	answers("the Service's name without a server", lookup...)

	agent.Reboot(t)
	if err := agent.Launch(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	answers("the Service's answer after a reboot without a server", byService...)
	t.Logf("the pod of before answers %s after the start of an agent that has no server", time.Since(began).Round(100*time.Millisecond))
	answers("the Service's name after a reboot without a server", lookup...)
	for name, url := range others {
		agent.WaitFor(t, "the Service "+name+" to lead to its pod", func(ctx context.Context) (bool, error) {
			// Until the kubelet has said where both pods are, it may be the wrong one, as
			// with a server.
			out, err := agent.ExecErr(ctx, box, "get", "--timeout", "2s", url)
			if err == nil && !strings.Contains(out, "this is "+name) {
				err = fmt.Errorf("it leads to a pod that answers %q", out)
			}
			return err == nil, err
		})
	}

	// The pod that was restarted by the reboot is not restarted for the server's return.
	server.Resume(t)
	agent.WaitReady(t)
	server.Kubectl(t, "delete", "pod", "-n", ns, "gone", "--wait=false")
	server.WaitGone(t, ns, "gone")
	after := server.WaitPod(t, ns, "web", "to be told of as running again", func(p *corev1.Pod) bool {
		return p.UID == before.UID && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Running != nil &&
			p.Status.ContainerStatuses[0].ContainerID != before.Status.ContainerStatuses[0].ContainerID
	})
	if restarts := after.Status.ContainerStatuses[0].RestartCount; restarts > 1 {
		t.Errorf("the container was restarted %d times for one reboot", restarts)
	}
	answers("the Service's answer at the end", byService...)
}
