package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// TestClusterIsRestoredOnAnEmptyMachine loses the server's machine and all that
// was on it. An agent goes on all the time.
func TestClusterIsRestoredOnAnEmptyMachine(t *testing.T) {
	server := harness.Start(t, harness.Options{Files: map[string]string{"/root/phrase": "correct horse battery staple\n"}})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	const ns = "default"
	server.Create(t, ns, kube.Pod("here", kube.On("node"), kube.Serve("from the server")), kube.Pod("there", kube.On("edge-1"), kube.Serve("from the edge")),
		kube.Service("there", kube.For("there"), kube.Port(80, 8080)),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, StringData: map[string]string{"password": "kept"}})
	lost := server.WaitPodRunning(t, ns, "here").Status.ContainerStatuses[0].ContainerID
	container := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID

	where := []string{"--backup-dir", "/root/backups", "--backup-passphrase-file", "/root/phrase"}
	name, _, _ := strings.Cut(server.Exec(t, append([]string{server.Exe, "backup", "create"}, where...)...), "\n")
	if out := server.Exec(t, server.Exe, "backup", "list", "--backup-dir", "/root/backups"); !strings.Contains(out, name) {
		t.Errorf("%s is not in the list:\n%s", name, out)
	}
	if out := server.Exec(t, append([]string{server.Exe, "backup", "verify", name}, where...)...); !strings.Contains(out, name+" is whole") {
		t.Errorf("verify: %s", out)
	}
	// What comes after the backup is lost, and the agent has seen it.
	server.Create(t, ns, kube.Pod("later", kube.On("edge-1"), kube.Serve("")))
	server.WaitPodRunning(t, ns, "later")

	server.Reboot(t)
	data := server.Host.Path("/var/lib/knarr")
	entries, err := os.ReadDir(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "agent" {
			continue // has the test image
		}
		if err := os.RemoveAll(filepath.Join(data, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if out := server.Exec(t, append([]string{server.Exe, "backup", "restore", name}, where...)...); !strings.Contains(out, "the cluster of node is restored") {
		t.Errorf("restore: %s", out)
	}
	server.Resume(t)

	if got := server.Kubectl(t, "get", "secret", "kept", "-o", "go-template={{.data.password|base64decode}}"); got != "kept" {
		t.Errorf("the Secret reads %q", got)
	}
	if _, err := server.Client.CoreV1().Pods(ns).Get(t.Context(), "later", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod of after the backup: %v", err)
	}
	server.WaitPod(t, ns, "here", "ready again", func(p *corev1.Pod) bool {
		return harness.PodReady(p) && p.Status.ContainerStatuses[0].ContainerID != lost
	})
	// The agent, which nobody has restarted, does what it is told, and ends what it
	// should not have.
	server.Create(t, ns, kube.Pod("new", kube.On("edge-1"), kube.Serve("")))
	server.WaitPodRunning(t, ns, "new")
	if now := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID; now != container {
		t.Errorf("the agent's container was %s and is %s", container, now)
	}
	if agent.Ended() {
		t.Error("the agent ended")
	}
	out := server.Kubectl(t, "exec", "-n", ns, "here", "--", "testbox", "get", "--retry", "30s", "http://there")
	if !strings.Contains(out, "from the edge") {
		t.Errorf("a pod of the server asks one of the agent by its Service: %q", out)
	}
}
