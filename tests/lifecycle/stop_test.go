package lifecycle

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/tests/harness"
)

// Parts of upstream end the process when they are disturbed in their start.
func TestStopIsOrderlyAtAnyMoment(t *testing.T) {
	n := harness.Prepare(t, harness.Options{})
	for _, moment := range []string{"containerd", "apiserver-tls", "kubelet", "controller-manager", "flannel"} {
		if err := n.Launch(); err != nil {
			t.Fatal(err)
		}
		n.WaitFor(t, moment+" to be ready", func(ctx context.Context) (bool, error) {
			report, err := n.StatusErr(ctx)
			return err == nil && slices.ContainsFunc(report.Components, func(c component.Status) bool {
				return c.Name == moment && c.State == component.StateReady
			}), err
		})
		n.Stop(t)
	}
	for line := range strings.Lines(n.Log(t)) {
		if strings.Contains(line, "did not stop") || strings.Contains(line, "stopped with an error") {
			t.Errorf("a stop was not orderly: %s", line)
		}
	}
	n.Resume(t)
}
