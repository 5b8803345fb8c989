// Package lifecycle tests what happens to a node around its clusters' pods: its
// start, its stops, its replacement, and the mistakes it must tell.
package lifecycle

import (
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
