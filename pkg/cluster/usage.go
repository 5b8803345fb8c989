package cluster

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/knarr-dev/knarr/pkg/usage"
)

// UsagePath is where the status socket tells what each component uses, sampled for
// "sample", a duration up to UsageLongest; see package usage.
const (
	UsagePath    = "/v1/usage"
	UsageLongest = time.Minute
)

func serveUsage(w http.ResponseWriter, r *http.Request) {
	sample, err := time.ParseDuration(r.FormValue("sample"))
	if err != nil || sample <= 0 || sample > UsageLongest {
		http.Error(w, "sample: give a duration up to "+UsageLongest.String(), http.StatusBadRequest)
		return
	}
	report, err := usage.Take(r.Context(), sample)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report) // it fails only when the client has gone
}
