// Package idle silences what upstream's parts do while nothing happens. It must
// import nothing of upstream's but what it silences: see withoutMetrics.
package idle

import (
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/util/workqueue"
)

// globalMetricsProvider makes the metrics of every work queue.
//
//go:linkname globalMetricsProvider k8s.io/client-go/util/workqueue.globalMetricsProvider
var globalMetricsProvider workqueue.MetricsProvider

// withoutMetrics is upstream's provider before k8s.io/component-base sets its
// own: Go initialises packages in the order of their paths, as far as their
// imports allow. TestTheProviderIsTheOneWithoutMetrics tells should that fail.
var withoutMetrics = globalMetricsProvider

// Queues makes work queues that are created from now on keep no metrics. With
// them each of some eighty queues wakes the process twice a second to bring one
// gauge up to date, for a third of the CPU of an idle node.
func Queues() { globalMetricsProvider = withoutMetrics }
