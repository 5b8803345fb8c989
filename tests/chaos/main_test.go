// Package chaos hurts a node under a known load of writes and
// watches, brings it back, and checks every acknowledged write and every event.
//
// Package storeload does the same to a store alone. In CI a few dozen rounds run; `make chaos ROUNDS=200` runs more, `make long`
// cuts the power a hundred times.
package chaos

import (
	"flag"
	"testing"

	"github.com/knarr-dev/knarr/tests/chaos/flakydisk"
	"github.com/knarr-dev/knarr/tests/harness"
)

var (
	rounds = flag.Int("rounds", 0, "rounds of SIGKILL, 0 is a few for CI")
	cuts   = flag.Int("cuts", 10, "power cuts of a disk")
	all    = flag.Bool("all", false, "also what CI has no time for")
	seed   = flag.Uint64("seed", 0, "what chance is made of; 0 is another one each time")
)

func TestMain(m *testing.M) {
	if flakydisk.MaybeServe() {
		return
	}
	harness.Main(m)
}

// long leaves a test out of CI.
func long(t *testing.T) {
	t.Helper()
	if !*all && *rounds == 0 {
		t.Skip("for `make chaos`")
	}
}
