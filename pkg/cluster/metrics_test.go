package cluster

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
)

func told() status.Report {
	return status.Report{
		Version: "v1", StartedAt: time.Unix(100, 0),
		Components: []component.Status{
			{Name: "kubelet", Class: component.Critical, State: component.StateReady, ReadyAfter: component.Duration{Duration: 1500 * time.Millisecond}},
			{Name: "flannel", Class: component.Retried, State: component.StateRetrying, Restarts: 3},
			{Name: "dns", Class: component.Optional, State: component.StateFailed},
		},
		Agent: &status.Agent{LastContact: time.Unix(200, 0), Offline: true, Servers: []status.APIServer{{Address: "192.0.2.1:6443", Tunnel: time.Unix(150, 0)}}},
	}
}

func TestMetricsTellWhatTheStatusDoes(t *testing.T) {
	m := &metrics{report: told, certificates: func() ([]pki.Entry, error) {
		e := pki.Entry{File: "a.pem", Subject: "CN=a", Use: "client", NotAfter: time.Unix(300, 0)}
		return []pki.Entry{e, e}, errors.New("another is damaged")
	}}
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(m); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			name := f.GetName()
			for _, l := range one.GetLabel() {
				name += "," + l.GetValue()
			}
			got[name] = one.GetGauge().GetValue() + one.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"knarr_info,v1": 1, "knarr_ready": 0, "knarr_start_timestamp_seconds": 100, "knarr_component_ready_seconds,kubelet": 1.5,
		"knarr_component_state,kubelet,ready": 1, "knarr_component_state,flannel,ready": 0, "knarr_component_state,flannel,failed-retrying": 1,
		"knarr_component_restarts_total,flannel": 3, "knarr_certificate_expiry_timestamp_seconds,a.pem,CN=a,client": 300,
		"knarr_agent_last_contact_timestamp_seconds": 200, "knarr_agent_offline": 1, "knarr_agent_tunnel_connected,192.0.2.1:6443": 1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}

	// What contrib and the docs speak of is there.
	known := map[string]bool{}
	for _, f := range families {
		known[f.GetName()] = true
	}
	for _, path := range []string{"../../contrib/prometheus/knarr.rules.yaml", "../../contrib/grafana/knarr.json", "../../docs/observability.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bknarr_[a-z_]+`).FindAllString(string(text), -1) {
			// tests/cluster looks whether those of other packages are there.
			if !known[name] && !regexp.MustCompile(`^knarr_(store|dns|backup|agent)_`).MatchString(name) {
				t.Errorf("%s speaks of %s, and there is no such metric", path, name)
			}
		}
		var any map[string]any
		switch {
		case strings.HasSuffix(path, ".json"):
			err = json.Unmarshal(text, &any)
		case strings.HasSuffix(path, ".yaml"):
			err = yaml.UnmarshalStrict(text, &any)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestHealthOfOneComponentAndOfAll(t *testing.T) {
	h := healthHandler(told)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/knarr/readyz":         {503, "[+]kubelet ready\n[-]flannel failed-retrying\n[?]dns failed, optional\n"},
		"/readyz/kubelet":       {200, "[+]kubelet ready\n"},
		"/knarr/livez/flannel":  {503, "[-]flannel failed-retrying\n"},
		"/livez/dns":            {503, "[-]dns failed\n"},
		"/knarr/healthz/nobody": {404, "there is no component \"nobody\"\n"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.code || w.Body.String() != want.text {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}
