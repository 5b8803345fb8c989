package cluster

import (
	"net/http"
	"runtime/pprof"
)

// GoroutinesPath is where the status socket tells what every goroutine does, those
// that do the same counted.
const GoroutinesPath = "/v1/goroutines"

func serveGoroutines(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = pprof.Lookup("goroutine").WriteTo(w, 1) // it fails only when the client has gone
}
