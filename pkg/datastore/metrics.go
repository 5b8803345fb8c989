package datastore

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/knarr-dev/knarr/pkg/datastore/engine"
)

// metrics are what a store tells a Prometheus registry.
type metrics struct {
	engine      *engine.Metrics // of our engine
	checkpoints prometheus.Histogram
	logPages    prometheus.Gauge
}

func newMetrics() *metrics {
	return &metrics{
		engine: engine.NewMetrics(),
		checkpoints: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knarr_store_checkpoint_duration_seconds",
			Help:    "Time that it takes to bring the write-ahead log into the file.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		logPages: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "knarr_store_log_pages",
			Help: "Length of the write-ahead log at the last checkpoint, in pages of 4 KiB.",
		}),
	}
}

// register makes the metrics known, and returns what makes them unknown again.
// Those of another store in this process stay: upstream's parts share theirs, too.
func (m *metrics) register(to prometheus.Registerer) (func(), error) {
	var registered []prometheus.Collector
	undo := func() {
		for _, c := range registered {
			to.Unregister(c)
		}
	}
	for _, c := range []prometheus.Collector{m.engine, m.checkpoints, m.logPages} {
		err := to.Register(c)
		switch {
		case err == nil:
			registered = append(registered, c)
		case !errors.As(err, new(prometheus.AlreadyRegisteredError)):
			undo()
			return nil, fmt.Errorf("register the store's metrics: %w", err)
		}
	}
	return undo, nil
}

func (m *metrics) checkpointed(pages int, took time.Duration) {
	m.checkpoints.Observe(took.Seconds())
	m.logPages.Set(float64(pages))
}
