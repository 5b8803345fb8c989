package cluster

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/status"
)

// HealthPaths are where a server's API tells, to who may get them, how Knarr's
// components stand: all of them, or with "/NAME" behind it the one of that name.
// The status socket answers at the same paths without "/knarr".
//
// livez fails for a component that has failed; readyz, and healthz as well, for
// one that is not ready. Optional components count only when they are asked for
// by name.
func HealthPaths() []string { return []string{"/knarr/healthz", "/knarr/livez", "/knarr/readyz"} }

// healthHandler answers under a path of HealthPaths.
func healthHandler(report func() status.Report) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, name, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/knarr"), "/"), "/")
		good := isReady
		if kind == "livez" {
			good = isLive
		}
		var text strings.Builder
		code, found := http.StatusOK, name == ""
		for _, c := range report().Components {
			if name != "" && c.Name != name {
				continue
			}
			found = true
			switch {
			case good(c):
				fmt.Fprintf(&text, "[+]%s %s\n", c.Name, c.State)
			case name == "" && c.Class == component.Optional:
				fmt.Fprintf(&text, "[?]%s %s, optional\n", c.Name, c.State)
			default:
				code = http.StatusServiceUnavailable
				fmt.Fprintf(&text, "[-]%s %s\n", c.Name, c.State)
			}
		}
		if !found {
			http.Error(w, fmt.Sprintf("there is no component %q", name), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text.String())) // a client that went away is nobody's trouble
	})
}

func isReady(c component.Status) bool { return c.State == component.StateReady }

func isLive(c component.Status) bool {
	return c.State != component.StateFailed && c.State != component.StateRetrying && c.State != component.StateStopped
}

// WatchPath is where the status socket tells the status again at each change, a
// JSON object a line.
const WatchPath = "/v1/status/watch"

// routes are what servers and agents have in common.
func (p *process) routes(mux *http.ServeMux, report func() status.Report) {
	for _, path := range HealthPaths() {
		path = strings.TrimPrefix(path, "/knarr")
		mux.Handle("GET "+path, healthHandler(report))
		mux.Handle("GET "+path+"/", healthHandler(report))
	}
	mux.HandleFunc("GET "+WatchPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for {
			changed := p.group.Changed()
			if json.NewEncoder(w).Encode(report()) != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("GET "+GoroutinesPath, serveGoroutines)
	mux.HandleFunc("GET "+UsagePath, serveUsage)
	mux.HandleFunc("POST "+FailPath+"{component}", order(http.StatusConflict, func(r *http.Request) error {
		return p.group.Fail(r.PathValue("component"))
	}))
}
