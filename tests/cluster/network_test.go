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

// reach has the pods here and there, on a node each, ask each other.
func reach(t *testing.T, server *harness.Node, ns string) {
	reachEachOther(t, server, ns, "here", "there")
}

func reachEachOther(t *testing.T, server *harness.Node, ns, a, b string) {
	t.Helper()
	one, other := server.WaitPodRunning(t, ns, a), server.WaitPodRunning(t, ns, b)
	for from, to := range map[string]*corev1.Pod{a: other, b: one} {
		out := server.Kubectl(t, "exec", "-n", ns, from, "--", "testbox", "get", "--retry", "60s", "http://"+to.Status.PodIP+":8080")
		if !strings.Contains(out, to.Name) {
			t.Errorf("%s asks %s: %q", from, to.Name, out)
		}
	}
}

func TestNodesFindEachOtherByRoutes(t *testing.T) {
	server := harness.Start(t, harness.Options{Args: []string{"--flannel-backend=host-gw"}})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("here", kube.On("node"), kube.Serve("")), kube.Pod("there", kube.On("edge-1"), kube.Serve("")))
	reach(t, server, ns)
	if routes := agent.Exec(t, "ip", "route"); !strings.Contains(routes, "10.42.0.0/24 via "+server.Host.Addr().String()) {
		t.Errorf("the agent's routes:\n%s", routes)
	}
	if links := agent.Exec(t, "ip", "-br", "link"); strings.Contains(links, "flannel") {
		t.Errorf("there is an overlay:\n%s", links)
	}
}

func TestAnotherCNIConnectsTheNodes(t *testing.T) {
	server := harness.Prepare(t, harness.Options{Args: []string{"--flannel-backend=none"}})
	if err := server.Launch(); err != nil {
		t.Fatal(err)
	}
	server.Connect(t)
	server.WaitFor(t, "the server's token", func(context.Context) (bool, error) {
		out, err := server.ExecErr(t.Context(), "cat", "/var/lib/knarr/server/node-token")
		return out != "", err
	})
	agent := harness.Prepare(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	if err := agent.Launch(); err != nil {
		t.Fatal(err)
	}
	// What an administrator without an overlay does: a bridge on each node, and
	// routes between them.
	nodes := map[string]*harness.Node{"node": server, "edge-1": agent}
	subnets := map[string]string{}
	for name := range nodes {
		server.WaitFor(t, "the pod subnet of "+name, func(ctx context.Context) (bool, error) {
			n, err := server.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			subnets[name] = n.Spec.PodCIDR
			return n.Spec.PodCIDR != "", nil
		})
	}
	for name, n := range nodes {
		for other, o := range nodes {
			if other != name {
				n.Exec(t, "ip", "route", "add", subnets[other], "via", o.Host.Addr().String())
			}
		}
		n.Write(t, "/etc/cni/net.d/10-own.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"own","plugins":[{"type":"bridge","bridge":"own0","isGateway":true,
			"ipam":{"type":"host-local","ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"/run/own-cni"}}]}`, subnets[name]))
	}
	server.WaitReady(t)
	agent.WaitReady(t)
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("here", kube.On("node"), kube.Serve("")), kube.Pod("there", kube.On("edge-1"), kube.Serve("")))
	reach(t, server, ns)
	if links := agent.Exec(t, "ip", "-br", "link"); strings.Contains(links, "cni0") || strings.Contains(links, "flannel") {
		t.Errorf("flannel's links are there:\n%s", links)
	}
}

// DHCP gives a machine another address.
func TestNodeFollowsItsAddress(t *testing.T) {
	server := harness.Start(t, harness.Options{})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("here", kube.On("node"), kube.Serve("")), kube.Pod("there", kube.On("edge-1"), kube.Serve("")))
	reach(t, server, ns)
	before := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID

	const first, second = "10.99.0.200", "10.99.0.201"
	move := func(from, to string) {
		agent.Exec(t, "sh", "-c", fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr add %s/24 dev eth0; ip route replace default via 10.99.0.1", from, to))
	}
	follows := func(t *testing.T, now string) {
		began := time.Now()
		server.WaitFor(t, "the Node's new address", func(ctx context.Context) (bool, error) {
			n, err := server.Client.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			for _, a := range n.Status.Addresses {
				if a.Type == corev1.NodeInternalIP && a.Address == now {
					return true, nil
				}
			}
			return false, nil
		})
		t.Logf("the Node has its new address after %s", time.Since(began).Round(100*time.Millisecond))
		server.WaitFor(t, "a log by the new address", func(context.Context) (bool, error) {
			_, err := server.KubectlErr("logs", "-n", ns, "there")
			return err == nil, err
		})
		reach(t, server, ns)
		t.Logf("pods of both nodes reach each other after %s", time.Since(began).Round(100*time.Millisecond))
		if after := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID; after != before {
			t.Errorf("the pod was restarted: %s, then %s", before, after)
		}
	}
	t.Run("while it runs", func(t *testing.T) {
		move(agent.Host.Addr().String(), first)
		follows(t, first)
	})
	t.Run("while it is off", func(t *testing.T) {
		agent.Stop(t)
		move(first, second)
		agent.Resume(t)
		follows(t, second)
	})
}
