package cluster

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// TestAuthoritiesAreReplacedWhilePodsRun: new authorities for a server and an agent.
// The old kubeconfig works until the old ones go, and no pod is restarted.
func TestAuthoritiesAreReplacedWhilePodsRun(t *testing.T) {
	server := harness.Start(t, harness.Options{})
	old := server.Token(t)
	harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + old}})
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("here", kube.On("node"), kube.Serve("")), kube.Pod("there", kube.On("edge-1"), kube.Serve("")))
	before := map[string]string{}
	for _, pod := range []string{"here", "there"} {
		before[pod] = server.WaitPodRunning(t, ns, pod).Status.ContainerStatuses[0].ContainerID
	}
	kubeconfig := "/var/lib/knarr/old.yaml"
	server.Exec(t, "cp", "/etc/knarr/kubeconfig.yaml", kubeconfig)
	knarr := server.Exe
	byOld := []string{knarr, "kubectl", "--kubeconfig", kubeconfig, "get", "--raw", "/readyz"}

	out := server.Exec(t, knarr, "certificate", "rotate-ca")
	token := server.Token(t)
	if token == old || !strings.Contains(out, token) {
		t.Errorf("the new token for nodes was not told: %s", out)
	}
	server.Exec(t, byOld...)
	if _, err := server.ExecErr(t.Context(), knarr, "certificate", "rotate-ca"); err == nil || !strings.Contains(err.Error(), "has begun at") {
		t.Errorf("a second one: %v", err)
	}
	server.WaitFor(t, "both authorities in kube-root-ca.crt", func(ctx context.Context) (bool, error) {
		cm, err := server.Client.CoreV1().ConfigMaps(ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil && strings.Count(cm.Data["ca.crt"], "BEGIN CERTIFICATE") == 2, err
	})
	server.WaitFor(t, "the agent to follow, so that the old ones may go", func(ctx context.Context) (bool, error) {
		n, err := server.Client.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{})
		return err == nil && n.Annotations["knarr.dev/authority"] != "", err
	})
	logs := func(what string) {
		server.WaitFor(t, what, func(context.Context) (bool, error) {
			_, err := server.KubectlErr("exec", "-n", ns, "there", "--", "cat", "/etc/hostname")
			return err == nil, err
		})
	}
	logs("an exec on the agent during the overlap")
	server.Exec(t, byOld...)

	server.Exec(t, knarr, "certificate", "rotate-ca", "--finish")
	if _, err := server.ExecErr(t.Context(), byOld...); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("the old kubeconfig after the end: %v", err)
	}
	server.Client = nil
	server.Connect(t)
	logs("an exec on the agent without the old ones")
	late := harness.Prepare(t, harness.Options{Join: server, Name: "edge-2", Env: []string{"KNARR_TOKEN=" + old}, NoWait: true})
	if err := late.Launch(); err != nil {
		t.Fatal(err)
	}
	if err := late.Wait(t); err == nil || !strings.Contains(late.Log(t), "its authority was replaced since the token was made") {
		t.Errorf("an old token: %v: %s", err, late.Log(t))
	}
	late.Env = []string{"KNARR_TOKEN=" + token}
	late.Resume(t)
	for pod, id := range before {
		if got := server.WaitPodRunning(t, ns, pod).Status.ContainerStatuses[0].ContainerID; got != id {
			t.Errorf("pod %s was restarted", pod)
		}
	}
}
