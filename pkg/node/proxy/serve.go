package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxymetrics "k8s.io/kubernetes/pkg/proxy/metrics"
)

// rebind is how long to wait for a port that is taken. Nothing tells when one
// becomes free.
const rebind = 30 * time.Second

// serve starts the servers that the settings ask for. Fail is called if a port is
// taken and the user wants that to be an end.
func (p *Proxy) serve(ctx context.Context, tasks *sync.WaitGroup, health *healthcheck.ProxyHealthServer, fail func(error)) {
	for what, s := range map[string]struct {
		addr    string
		handler http.Handler
	}{
		"health":  {p.settings.HealthzBindAddress, healthHandler(health)},
		"metrics": {p.settings.MetricsBindAddress, p.metricsHandler()},
	} {
		if s.addr == "" {
			continue
		}
		tasks.Go(func() {
			for told := false; ; told = true {
				err := serve(ctx, s.addr, s.handler, p.log)
				if ctx.Err() != nil {
					return
				}
				err = fmt.Errorf("serve kube-proxy's %s on %s (%s=%s-bind-address changes it): %w", what, s.addr, owner, flagOf(what), err)
				if p.settings.BindAddressHardFail {
					fail(err)
					return
				}
				if !told {
					p.log.Warn("Services work, but one of kube-proxy's ports does not; will be tried again", "every", rebind, "err", err)
				}
				if !pause(ctx, rebind) {
					return
				}
			}
		})
	}
}

// flagOf is the first word of a server's flag.
func flagOf(what string) string {
	if what == "health" {
		return "healthz"
	}
	return what
}

// serve serves until ctx ends or the port fails.
func serve(ctx context.Context, addr string, h http.Handler, log *slog.Logger) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// healthHandler answers as upstream's health server does, which can't be stopped:
// /healthz tells load balancers whether to use this node, /livez whether the
// rules are up to date.
func healthHandler(health *healthcheck.ProxyHealthServer) http.Handler {
	answer := func(w http.ResponseWriter, state healthcheck.ProxyHealth, ok bool, count *metrics.CounterVec) {
		code := http.StatusOK
		if ok {
			state.LastUpdated = time.Now() // upstream promises a recent time while all is well
		} else {
			code = http.StatusServiceUnavailable
		}
		count.WithLabelValues(fmt.Sprint(code)).Inc()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(state)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		state, eligible := health.Health(), health.NodeEligible()
		state.NodeEligible = &eligible
		answer(w, state, state.Healthy && eligible, proxymetrics.ProxyHealthzTotal)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		state := health.Health()
		answer(w, state, state.Healthy, proxymetrics.ProxyLivezTotal)
	})
	return mux
}

func (p *Proxy) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", legacyregistry.Handler())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, string(p.settings.Mode)) })
	if p.settings.EnableProfiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}
