package harness

import (
	"path/filepath"
	"testing"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// NeighbourTestbox is where a neighbour has the program of the test image.
const NeighbourTestbox = "/opt/images/testbox"

// Neighbour makes a machine beside the node, on the same network and no part of
// the cluster. It goes with the test.
func (n *Node) Neighbour(t testing.TB) *lab.Host {
	t.Helper()
	h, err := n.lab.AddHost(t.Context(), lab.HostConfig{Binds: []lab.Bind{{
		Source: filepath.Dir(Testbox(t)), Target: filepath.Dir(NeighbourTestbox), ReadOnly: true,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}
