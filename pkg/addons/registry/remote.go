package registry

import (
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
)

// Prefix is where the API server's port leads to the registry.
const Prefix = "/knarr/registry/"

// Remote is the way from a node to the server that keeps the images.
type Remote struct {
	// Server is the API server's address, as https://host:port.
	Server string
	// Transport carries the node's credential.
	Transport http.RoundTripper
}

// handler hands requests on.
func (r Remote) handler(logger *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Transport: r.Transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			to, err := url.Parse(r.Server)
			if err != nil {
				to = &url.URL{Scheme: "https", Host: r.Server}
			}
			p.Out.URL.Scheme, p.Out.URL.Host = to.Scheme, to.Host
			p.Out.URL.Path = strings.TrimSuffix(Prefix, "/") + p.In.URL.Path
			p.Out.URL.RawPath = ""
			p.Out.Host = ""
			// The node's own stands there.
			p.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			if req.Context().Err() == nil {
				logger.Debug("registry of the cluster", "err", err)
			}
			refuse(w, "the server that keeps the images can't be reached: "+err.Error())
		},
		ErrorLog: log.New(io.Discard, "", 0), // ErrorHandler has told
	}
}

// later is a handler that comes and goes.
type later struct{ now atomic.Pointer[http.Handler] }

func newLater() *later { return new(later) }

func (l *later) set(h http.Handler) {
	if h == nil {
		l.now.Store(nil)
		return
	}
	l.now.Store(&h)
}

func (l *later) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := l.now.Load()
	if h == nil {
		refuse(w, errStarting.Error())
		return
	}
	(*h).ServeHTTP(w, r)
}

// refuse answers as registries do.
func refuse(w http.ResponseWriter, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": "UNAVAILABLE", "message": why}}})
}
