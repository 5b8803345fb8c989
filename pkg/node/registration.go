package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/knarr-dev/knarr/pkg/part"
)

// registration follows this machine's Node object. It gives a server's node its
// role, which a kubelet may not claim for itself (NodeRestriction), and is
// ready when the Node is.
type registration struct {
	env          *part.Env
	controlPlane bool
	// since is when this process began: what the Node said before it, as of a
	// machine that has rebooted since, does not count.
	since time.Time
}

func (r *registration) Name() string    { return "node" }
func (r *registration) Needs() []string { return []string{r.env.Answering, "kubelet"} }

func (r *registration) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := r.env.Client()
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	name := r.env.Config.Node.Name
	lw := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "", fields.OneTermEqualSelector("metadata.name", name))
	labelled := !r.controlPlane
	_, err = watchtools.UntilWithSync(ctx, lw, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		n, ok := e.Object.(*corev1.Node)
		if !ok || e.Type == watch.Deleted {
			return false, nil
		}
		if !labelled {
			if err := label(ctx, client, n); err != nil {
				return false, err
			}
			labelled = true
		}
		return isReady(n, r.since), nil
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for node %s to become ready: %w", name, err)
	}
	close(ready)
	<-ctx.Done()
	return nil
}

// roles are shown by `kubectl get nodes`.
func roles() map[string]string {
	return map[string]string{"node-role.kubernetes.io/control-plane": "true"}
}

func label(ctx context.Context, client kubernetes.Interface, n *corev1.Node) error {
	missing := map[string]string{}
	for k, v := range roles() {
		if _, ok := n.Labels[k]; !ok {
			missing[k] = v
		}
	}
	if len(missing) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": missing}})
	if err != nil {
		return fmt.Errorf("encode labels: %w", err)
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("label node %s: %w", n.Name, err)
	}
	return nil
}

// isReady tells whether pods can start on the node: the kubelet has called it
// ready since then, by a clock of whole seconds, and the taints that keep pods
// away from a node that is not are gone. Those go a moment later.
func isReady(n *corev1.Node, since time.Time) bool {
	if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable
	}) {
		return false
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second))
	})
}
