package cluster

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
)

// metrics tells Prometheus what Knarr knows about itself. Everything is looked up
// when it is asked for: it costs nothing in between.
type metrics struct {
	report       func() status.Report
	certificates func() ([]pki.Entry, error)
}

var _ prometheus.Collector = (*metrics)(nil)

func described(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("knarr_"+name, help, labels, nil)
}

var (
	infoDesc       = described("info", "Always 1; its label is Knarr's version.", "version")
	readyDesc      = described("ready", "1 if every component that is not optional is ready.")
	startDesc      = described("start_timestamp_seconds", "When the components were started, in seconds since 1970.")
	readyAfterDesc = described("component_ready_seconds", "Time from the start to the component's first readiness, in seconds.", "component")
	stateDesc      = described("component_state", "1 for the state that the component is in.", "component", "state")
	restartsDesc   = described("component_restarts_total", "How often the component was started again.", "component")
	expiryDesc     = described("certificate_expiry_timestamp_seconds", "When the certificate ends, in seconds since 1970.", "file", "subject", "use")
	contactDesc    = described("agent_last_contact_timestamp_seconds", "When an API server was heard last, in seconds since 1970.")
	offlineDesc    = described("agent_offline", "1 while the node lives by what it kept.")
	tunnelDesc     = described("agent_tunnel_connected", "1 if that server can reach this node by its tunnel.", "server")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{infoDesc, readyDesc, startDesc, readyAfterDesc, stateDesc, restartsDesc, expiryDesc, contactDesc, offlineDesc, tunnelDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	r := m.report()
	gauge(infoDesc, 1, r.Version)
	gauge(readyDesc, one(r.Ready))
	gauge(startDesc, seconds(r.StartedAt))
	for _, c := range r.Components {
		if c.ReadyAfter.Duration > 0 {
			gauge(readyAfterDesc, c.ReadyAfter.Seconds(), c.Name)
		}
		for _, s := range []component.State{component.StateWaiting, component.StateStarting, component.StateReady, component.StateRetrying, component.StateFailed, component.StateStopping, component.StateStopped} {
			gauge(stateDesc, one(c.State == s), c.Name, string(s))
		}
		ch <- prometheus.MustNewConstMetric(restartsDesc, prometheus.CounterValue, float64(c.Restarts), c.Name)
	}
	if a := r.Agent; a != nil {
		if !a.LastContact.IsZero() {
			gauge(contactDesc, seconds(a.LastContact))
		}
		gauge(offlineDesc, one(a.Offline))
		for _, s := range a.Servers {
			gauge(tunnelDesc, one(!s.Tunnel.IsZero()), s.Address)
		}
	}
	all, err := m.certificates()
	if err != nil && len(all) == 0 {
		ch <- prometheus.NewInvalidMetric(expiryDesc, err)
		return
	}
	seen := map[[2]string]bool{}
	for _, e := range all {
		// A file may hold several of one subject; the first is what it is for.
		if key := [2]string{e.File, e.Subject}; !seen[key] {
			seen[key] = true
			gauge(expiryDesc, seconds(e.NotAfter), e.File, e.Subject, e.Use)
		}
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
