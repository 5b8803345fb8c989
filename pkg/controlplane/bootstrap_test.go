package controlplane

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/pki"
)

// A failing hook ends the process, so that a stop must not make it fail.
func TestBootstrapFailsWithTheServerButNotByAStop(t *testing.T) {
	p, err := pki.Ensure(pki.Config{Dir: t.TempDir(), NodeName: "node", ClusterDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stops := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if stops {
			stop()
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer srv.Close()
	if err := bootstrap(ctx, &rest.Config{Host: srv.URL}, p); err == nil {
		t.Error("a server that refuses everything is no failure")
	}
	stops = true
	if err := bootstrap(ctx, &rest.Config{Host: srv.URL}, p); err != nil {
		t.Errorf("a stop in the middle is a failure: %v", err)
	}
}
