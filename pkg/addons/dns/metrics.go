package dns

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a name server tells Prometheus.
type metrics struct {
	queries  *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics() *metrics {
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knarr_dns_queries_total",
			Help: "Queries that this node's DNS has answered, by protocol and response code.",
		}, []string{"proto", "rcode"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "knarr_dns_query_duration_seconds",
			Help:    "Time to the answer of a query, those forwarded to other name servers included.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 4, 8), // to 4 s; clients give up after 5
		}),
	}
	// A rate can be told of what has been told as 0 before.
	for _, proto := range []string{"udp", "tcp"} {
		for _, rcode := range []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure} {
			m.queries.WithLabelValues(proto, code(rcode))
		}
	}
	return m
}

// register returns what makes the metrics unknown again. Those of another server in
// this process stay.
func (m *metrics) register(to prometheus.Registerer) func() {
	if to == nil {
		return func() {}
	}
	var known []prometheus.Collector
	for _, c := range []prometheus.Collector{m.queries, m.duration} {
		if err := to.Register(c); err == nil || !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			known = append(known, c)
		}
	}
	return func() {
		for _, c := range known {
			to.Unregister(c)
		}
	}
}

// measure counts queries.
type measure struct {
	told *metrics
	next plugin.Handler
}

func (m *measure) Name() string { return "measure" }

func (m *measure) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	began := time.Now()
	growStack()
	a := &answered{ResponseWriter: w, rcode: -1}
	rcode, err := plugin.NextOrFailure(m.Name(), m.next, ctx, a, r)
	if a.rcode < 0 { // the server answers by the code
		a.rcode = rcode
	}
	proto := "udp"
	if w.RemoteAddr().Network() == "tcp" {
		proto = "tcp"
	}
	m.told.queries.WithLabelValues(proto, code(a.rcode)).Inc()
	m.told.duration.Observe(time.Since(began).Seconds())
	return rcode, err
}

// growStack has the stack of the goroutine of a query grow at once to what an answer
// takes. It would double three times on the way, and copy all calls so far each time:
// a fifth of the work of an answer.
//
//go:noinline
func growStack() {
	var room [10 << 10]byte
	runtime.KeepAlive(&room)
}

func code(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return "other"
}

// answered notes the code of the answer that passes through it.
type answered struct {
	dns.ResponseWriter
	rcode int
}

func (a *answered) WriteMsg(m *dns.Msg) error {
	a.rcode = m.Rcode
	return a.ResponseWriter.WriteMsg(m)
}
