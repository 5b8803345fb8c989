package lifecycle

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestReadyMeansReady(t *testing.T) {
	for round := range 3 {
		t.Run(fmt.Sprintf("on new machine %d", round+1), readyMeansReady)
	}
}

func readyMeansReady(t *testing.T) {
	n := harness.Start(t, harness.Options{NoWait: true})
	n.Connect(t)
	n.WaitFor(t, "the API to call itself ready", func(ctx context.Context) (bool, error) {
		_, err := n.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, err
	})
	if _, err := n.Client.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("the API was ready: %v", err)
	}

	n.Kubectl(t, "wait", "--for=create", "node/node", "--timeout=1m")
	n.Kubectl(t, "wait", "--for=condition=Ready", "node/node", "--timeout=1m")
	n.Create(t, "default", kube.Pod("first", kube.Serve("")))

	n.WaitReady(t)
	// One question, asked once.
	hosts, err := hostResolver(n).LookupHost(t.Context(), "kubernetes.default.svc.cluster.local.")
	if err != nil || len(hosts) != 1 || hosts[0] != "10.43.0.1" {
		t.Errorf("READY=1 was said, and DNS answered the host: %v, %v", hosts, err)
	}
	n.WaitPodRunning(t, "default", "first")
	if said := n.Kubectl(t, "exec", "first", "--", "testbox", "lookup", "kubernetes.default"); strings.TrimSpace(said) != "10.43.0.1" {
		t.Errorf("READY=1 was said, and DNS answered a pod: %s", said)
	}

	events, err := n.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=first"})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		// The taint of a node that was not ready may go a moment after that.
		if e.Type == corev1.EventTypeWarning && e.Reason != "FailedScheduling" {
			t.Errorf("the first pod: %s: %s", e.Reason, e.Message)
		}
	}
}

// hostResolver asks cluster DNS from the host.
func hostResolver(n *harness.Node) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return n.Host.DialContext(ctx, network, "10.43.0.10:53")
	}}
}
