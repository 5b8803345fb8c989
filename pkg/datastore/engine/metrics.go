package engine

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics tell a Prometheus registry what a store does.
type Metrics struct {
	changes, commits prometheus.Histogram
	// read and watched count revisions that were not among the recent ones.
	read, watched prometheus.Counter
	gauges        []gauge

	mu     sync.Mutex
	engine *Engine
}

type gauge struct {
	*prometheus.Desc
	of func(*Engine) int64
}

var _ prometheus.Collector = (*Metrics)(nil)

// NewMetrics returns those of one store; see docs/store.md.
func NewMetrics() *Metrics {
	reads := func(by string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "knarr_store_file_reads_total",
			Help:        "Revisions that were read from the file because they are not among the recent ones in memory.",
			ConstLabels: prometheus.Labels{"by": by},
		})
	}
	m := &Metrics{
		changes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knarr_store_commit_changes",
			Help:    "Changes that one commit makes, and that share its wait for the disk.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knarr_store_commit_duration_seconds",
			Help:    "Time that a commit waits for the disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}),
		read:    reads("request"),
		watched: reads("watch"),
	}
	for _, g := range []struct {
		name, help string
		of         func(*Engine) int64
	}{
		{"revision", "Revision of the last change.", func(e *Engine) int64 { return e.rev }},
		{"compacted_revision", "Revision before which history is forgotten.", func(e *Engine) int64 { return e.compacted }},
		{"keys", "Keys that there are.", func(e *Engine) int64 { return int64(e.keys.Len()) }},
		{"watches", "Watches that run.", func(e *Engine) int64 { return int64(len(e.watchers)) }},
		{"recent_bytes", "Size of the recent changes that are in memory.", func(e *Engine) int64 { return int64(e.ring.bytes) }},
	} {
		m.gauges = append(m.gauges, gauge{prometheus.NewDesc("knarr_store_"+g.name, g.help, nil, nil), g.of})
	}
	return m
}

func (m *Metrics) watch(e *Engine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.engine = e
}

func (m *Metrics) committed(changes int, wait time.Duration) {
	m.changes.Observe(float64(changes))
	m.commits.Observe(wait.Seconds())
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{m.changes, m.commits, m.read, m.watched} {
		c.Describe(to)
	}
	for _, g := range m.gauges {
		to <- g.Desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.changes, m.commits, m.read, m.watched} {
		c.Collect(to)
	}
	for i, v := range m.values() {
		to <- prometheus.MustNewConstMetric(m.gauges[i].Desc, prometheus.GaugeValue, float64(v))
	}
}

// values are those of the gauges, once there is an engine.
func (m *Metrics) values() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.engine == nil {
		return nil
	}
	m.engine.mu.RLock()
	defer m.engine.mu.RUnlock()
	values := make([]int64, len(m.gauges))
	for i, g := range m.gauges {
		values[i] = g.of(m.engine)
	}
	return values
}
