package lifecycle

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// uninitialized is the taint that a node has until its cloud's controller knows it;
// see k8s.io/cloud-provider/api.
const uninitialized = "node.cloudprovider.kubernetes.io/uninitialized"

// TestNodeWaitsForItsCloudsController: a controller of a cloud outside, of which this
// test does the part that matters to a node.
func TestNodeWaitsForItsCloudsController(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--kubelet-arg=cloud-provider=external"}})
	nodes := n.Client.CoreV1().Nodes()
	var node *corev1.Node
	n.WaitFor(t, "the node's taint", func(ctx context.Context) (bool, error) {
		var err error
		node, err = nodes.Get(ctx, "node", metav1.GetOptions{})
		return err == nil && isUninitialized(node), err
	})
	if node.Spec.ProviderID != "" {
		t.Errorf("the node calls itself %s", node.Spec.ProviderID)
	}
	n.Create(t, "default", kube.Pod("waits", kube.Serve("")))
	n.WaitPod(t, "default", "waits", "to be told that no node is initialized", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "untolerated taint") {
				return true
			}
		}
		return false
	})

	// What a cloud's controller does: names, addresses, and away with the taint.
	patch := `{"metadata":{"labels":{"topology.kubernetes.io/zone":"stub-1a","node.kubernetes.io/instance-type":"stub.small"}},"spec":{"providerID":"stub://1","taints":null}}`
	if _, err := nodes.Patch(t.Context(), "node", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	addresses := `{"status":{"addresses":[{"type":"InternalIP","address":"` + n.Host.Addr().String() + `"},{"type":"Hostname","address":"node"},{"type":"ExternalIP","address":"203.0.113.7"}]}}`
	if _, err := nodes.Patch(t.Context(), "node", types.StrategicMergePatchType, []byte(addresses), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	n.WaitPodRunning(t, "default", "waits")
	if out := n.Kubectl(t, "exec", "waits", "--", "cat", "/etc/hostname"); strings.TrimSpace(out) != "waits" {
		t.Errorf("exec: %q", out)
	}

	// The next start leaves the cloud's words alone.
	n.Restart(t)
	node, err := nodes.Get(t.Context(), "node", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	external := false
	for _, a := range node.Status.Addresses {
		external = external || a.Type == corev1.NodeExternalIP && a.Address == "203.0.113.7"
	}
	if node.Spec.ProviderID != "stub://1" || isUninitialized(node) || node.Labels["topology.kubernetes.io/zone"] != "stub-1a" || !external {
		t.Errorf("after a restart: %s, taints %v, labels %v, addresses %v", node.Spec.ProviderID, node.Spec.Taints, node.Labels, node.Status.Addresses)
	}
}

func isUninitialized(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Key == uninitialized {
			return true
		}
	}
	return false
}
