// Package cluster tests clusters of several nodes, each in a lab host of its own.
package cluster

import (
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
