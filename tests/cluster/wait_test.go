package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A node that comes first, a cut network, and tokens that are worth nothing.
func TestAgentsWaitForTheirServer(t *testing.T) {
	const token = "abcdef.0123456789abcdef"
	server := harness.Prepare(t, harness.Options{Args: []string{"--token", token}})
	agent := harness.Prepare(t, harness.Options{Join: server, Name: "edge-1", Args: []string{"--token", token}})
	// At its boot the network is later than the agent.
	agent.Exec(t, "ip", "route", "del", "default")
	if err := agent.Launch(); err != nil {
		t.Fatal(err)
	}
	agent.WaitFor(t, "the agent to wait for its network", func(context.Context) (bool, error) {
		return strings.Contains(agent.Log(t), "waiting for a default route"), nil
	})
	agent.Exec(t, "ip", "route", "add", "default", "via", "10.99.0.1")
	agent.WaitFor(t, "the warning that the token names no authority", func(context.Context) (bool, error) {
		return strings.Contains(agent.Log(t), "does not name the cluster's authority"), nil
	})
	server.Resume(t)
	began := time.Now()
	agent.WaitReady(t)
	t.Logf("the agent that had waited was ready %s after its server", time.Since(began).Round(10*time.Millisecond))
	for _, log := range []string{agent.Log(t), server.Log(t)} {
		if strings.Contains(log, "0123456789abcdef") {
			t.Errorf("the token is in a log:\n%s", log)
		}
	}
	if shown := agent.Exec(t, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(shown, token) {
		t.Errorf("the token is among the arguments of a process:\n%s", shown)
	}

	t.Run("refuses to join by a token that is worth nothing", func(t *testing.T) {
		revoked := strings.TrimSpace(server.Kubectl(t, "get", "secret", "-n", "kube-system", "bootstrap-token-abcdef", "-o", "name"))
		if revoked != "secret/bootstrap-token-abcdef" {
			t.Errorf("the server's token is %q", revoked)
		}
		made := strings.TrimSpace(server.Exec(t, server.Exe, "token", "create", "--ttl", "1h"))
		id := strings.Split(made, ".")[2]
		server.Exec(t, server.Exe, "token", "delete", id)
		mangled := strings.Replace(made, made[6:10], "0000", 1)
		stranger := harness.Prepare(t, harness.Options{Join: server, Name: "stranger", Images: []string{}})
		for what, c := range map[string]struct{ token, says string }{
			"revoked":               {made, "does not know the token"},
			"of another authority":  {mangled, "not the one that the token names"},
			"with a part too few":   {"knarr." + id, "parts with dots"},
			"with a secret of none": {"abcdef.0123", "secret is not 16"},
		} {
			stranger.Env = []string{"KNARR_TOKEN=" + c.token}
			before := len(stranger.Log(t))
			if err := stranger.Launch(); err != nil {
				t.Fatal(err)
			}
			err := stranger.Wait(t)
			said := stranger.Log(t)[before:]
			if err == nil || !strings.Contains(said, c.says) || strings.Contains(said, strings.Split(made, ".")[3]) {
				t.Errorf("%s: %v\n%s", what, err, said)
			}
		}
		if _, err := server.Client.CoreV1().Nodes().Get(t.Context(), "stranger", metav1.GetOptions{}); err == nil {
			t.Error("a stranger is a node")
		}
	})
	t.Run("goes on after the network was cut", func(t *testing.T) {
		ns := server.Namespace(t)
		server.Create(t, ns, kube.Pod("there", kube.On("edge-1"), kube.Serve("x")))
		before := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID
		agent.Exec(t, nft, `add table inet cut; add chain inet cut in { type filter hook input priority -500; policy accept; }; add rule inet cut in iifname eth0 drop`)
		agent.WaitFor(t, "the agent to notice", func(ctx context.Context) (bool, error) {
			r, err := agent.StatusErr(ctx)
			return err == nil && r.Agent.Offline, err
		})
		agent.Exec(t, nft, "delete table inet cut")
		server.Create(t, ns, kube.Pod("new", kube.On("edge-1"), kube.Serve("x")))
		server.WaitPodRunning(t, ns, "new")
		after := server.WaitPodRunning(t, ns, "there")
		if after.Status.ContainerStatuses[0].ContainerID != before || after.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the pod was restarted: %+v", after.Status.ContainerStatuses)
		}
	})
	t.Run("goes on after its server was killed", func(t *testing.T) {
		server.Kill(t)
		server.Resume(t)
		ns := server.Namespace(t)
		server.Create(t, ns, kube.Pod("again", kube.On("edge-1"), kube.Serve("x")))
		server.WaitPodRunning(t, ns, "again")
		n, err := server.Client.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				t.Errorf("the node is not ready: %+v", c)
			}
		}
	})
	joinsLate(t, server)
}
