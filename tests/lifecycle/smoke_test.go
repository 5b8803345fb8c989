package lifecycle

import (
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
)

func TestSmoke(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	ns := n.Namespace(t)
	n.Apply(t, ns, `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: "knarr.dev/test:1"}]}}`)
	n.WaitPodRunning(t, ns, "a")
	t.Log(n.Kubectl(t, "get", "pods,nodes", "-A", "-o", "wide"))
	t.Log(n.Log(t))
	t.Log(n.Status(t))
}
