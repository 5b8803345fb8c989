package idle

import "k8s.io/client-go/util/workqueue"

// Providers are the one that was taken and the one in use.
func Providers() (taken, used workqueue.MetricsProvider) {
	return withoutMetrics, globalMetricsProvider
}
