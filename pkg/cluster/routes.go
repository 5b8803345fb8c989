package cluster

import (
	"encoding/json"
	"net/http"
)

// RotatePath is where the status socket takes the order, by POST, to renew every
// certificate that the server made for itself.
const RotatePath = "/v1/certificates/rotate"

// RotateKeyPath is where the status socket takes the order, by POST, to sign
// service-account tokens by a new key: with "keep", a duration for which tokens of the
// old one are good. With "drop" no key is made, and the tokens of all former keys are
// refused.
const RotateKeyPath = "/v1/certificates/rotate-service-account-key"

// FlagsPath is where the status socket tells the flags that the control plane's
// parts run with: a JSON object of objects, by part and by flag.
const FlagsPath = "/v1/flags"

// FailPath is where the status socket takes the order, by POST, to have the
// component of the path's last part fail: for tests of what the others do then.
const FailPath = "/v1/debug/fail/"

// order answers with nothing, or with the error by which what was ordered failed.
func order(failure int, do func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := do(r); err != nil {
			http.Error(w, err.Error(), failure)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// Routes adds to the status socket what a server can be asked there beside its
// status.
func (c *Cluster) Routes(mux *http.ServeMux) {
	c.routes(mux, c.Status)
	for pattern, h := range c.env.Local() {
		mux.HandleFunc(pattern, h)
	}
	c.authorityRoutes(mux)
	mux.HandleFunc("POST "+RotatePath, order(http.StatusInternalServerError, func(r *http.Request) error { return c.certs.rotate(r.Context()) }))
	mux.HandleFunc("POST "+RotateKeyPath, order(http.StatusInternalServerError, c.rotateTokenKey))
	mux.HandleFunc("GET "+FlagsPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.settings.All()) // it fails only when the client has gone
	})
}

// Routes adds to the status socket what an agent can be asked there beside its
// status.
func (a *Agent) Routes(mux *http.ServeMux) {
	a.routes(mux, a.Status)
	mux.HandleFunc("POST "+RotatePath, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "an agent's certificates come from its servers, and are renewed before they end", http.StatusNotImplemented)
	})
}
