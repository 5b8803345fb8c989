// Outside of package idle, which must not import what sets the provider.
package idle_test

import (
	"fmt"
	"testing"

	_ "k8s.io/component-base/metrics/prometheus/workqueue" // sets the provider that Queues replaces

	"github.com/knarr-dev/knarr/pkg/idle"
)

func TestTheProviderIsTheOneWithoutMetrics(t *testing.T) {
	const noop = "workqueue.noopMetricsProvider"
	taken, used := idle.Providers()
	if got := fmt.Sprintf("%T", taken); got != noop {
		t.Fatalf("the provider taken at the start is a %s, not %s: upstream has changed", got, noop)
	}
	if got := fmt.Sprintf("%T", used); got == noop {
		t.Fatal("component-base sets no provider any more: delete this package")
	}
	idle.Queues()
	if _, used = idle.Providers(); fmt.Sprintf("%T", used) != noop {
		t.Fatalf("queues get a %T after Queues", used)
	}
}
