package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// unplug takes a host's address and its way out, as what manages networks does when
// the cable is pulled, or no DHCP server answers after a power cut.
func unplug(t *testing.T, n *harness.Node) {
	t.Helper()
	n.Exec(t, "sh", "-c", "ip link set eth0 down; ip addr flush dev eth0")
}

func plug(t *testing.T, n *harness.Node, address string) {
	t.Helper()
	n.Exec(t, "sh", "-c", fmt.Sprintf("ip link set eth0 up; ip addr add %s/24 dev eth0; ip route replace default via 10.99.0.1", address))
}

// A router dies, or a power cut has taken it, too.
func TestNodesLiveWithoutANetwork(t *testing.T) {
	server := harness.Start(t, harness.Options{})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	server.Create(t, ns,
		kube.Pod("here", kube.On("node"), kube.Serve("this is here")), kube.Service("here", kube.For("here"), kube.Port(80, 8080)),
		kube.Pod("there", kube.On("edge-1"), kube.Serve("this is there")), kube.Service("there", kube.For("there"), kube.Port(80, 8080)))
	reach(t, server, ns)
	const box = "/root/testbox"
	nodes := map[string]*harness.Node{"here": server, "there": agent}
	urls := map[string]string{}
	for name, n := range nodes {
		harness.CopyFile(t, harness.Testbox(t), n.Host.Path(box), 0o755)
		svc, err := server.Client.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		urls[name] = "http://" + svc.Spec.ClusterIP
	}
	answers := func(when, name string) {
		t.Helper()
		nodes[name].WaitFor(t, "the Service "+name+" "+when, func(ctx context.Context) (bool, error) {
			out, err := nodes[name].ExecErr(ctx, box, "get", "--timeout", "2s", urls[name])
			return strings.Contains(out, "this is "+name), err
		})
	}
	// The cluster of one node that is left: its API from outside of pods, from inside
	// of one, and a new pod.
	whole := func(when string) {
		t.Helper()
		server.WaitFor(t, "a pod to find the API server "+when, func(context.Context) (bool, error) {
			_, err := server.KubectlErr("exec", "-n", ns, "here", "--", "testbox", "waitfor", "kubernetes.default.svc.cluster.local:443", "--timeout", "5s")
			return err == nil, err
		})
		name := "new-" + strings.ReplaceAll(when, " ", "-")
		server.Create(t, ns, kube.Pod(name, kube.On("node"), kube.Serve("")))
		server.WaitPodRunning(t, ns, name)
	}
	holds := func(n *harness.Node, address string, want bool) {
		t.Helper()
		n.WaitFor(t, fmt.Sprintf("the loopback link to have %s: %v", address, want), func(ctx context.Context) (bool, error) {
			out, err := n.ExecErr(ctx, "ip", "-o", "addr", "show", "dev", "lo")
			return strings.Contains(out, address+"/") == want, err
		})
	}
	for name, n := range nodes {
		unplug(t, n)
		holds(n, n.Host.Addr().String(), true)
		answers("without a network", name)
	}
	whole("without a network")

	for name, n := range nodes {
		n.Stop(t)
		n.Reboot(t)
		unplug(t, n)
		began := time.Now()
		if err := n.Launch(); err != nil {
			t.Fatal(err)
		}
		answers("after a reboot without a network", name)
		t.Logf("the Service %s answers %s after the start of a node that has no network", name, time.Since(began).Round(100*time.Millisecond))
	}
	whole("after a reboot without a network")
	server.WaitReady(t)

	for _, n := range nodes {
		plug(t, n, n.Host.Addr().String())
		holds(n, n.Host.Addr().String(), false)
	}
	agent.WaitReady(t)
	waitNode(t, server, "edge-1", corev1.ConditionTrue)
	reach(t, server, ns)
	for _, name := range []string{"here", "there"} {
		if restarts := server.WaitPodRunning(t, ns, name).Status.ContainerStatuses[0].RestartCount; restarts > 1 {
			t.Errorf("%s was restarted %d times for one reboot", name, restarts)
		}
	}

	unplug(t, agent)
	holds(agent, agent.Host.Addr().String(), true)
	const other = "10.99.0.202"
	plug(t, agent, other)
	server.WaitFor(t, "the Node's other address", func(ctx context.Context) (bool, error) {
		n, err := server.Client.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{})
		return err == nil && slices.Contains(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: other}), err
	})
	holds(agent, agent.Host.Addr().String(), false)
	// The kubelet has a certificate for the other address once its Node has that.
	server.WaitFor(t, "a kubelet that is believed at its other address", func(context.Context) (bool, error) {
		_, err := server.KubectlErr("logs", "-n", ns, "there")
		return err == nil, err
	})
	reach(t, server, ns)
}
