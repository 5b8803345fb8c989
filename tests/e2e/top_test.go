package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/usage"
)

func TestTopTellsThePartsApart(t *testing.T) {
	n := shared.Get(t)
	var r usage.Report
	if err := json.Unmarshal([]byte(n.Exec(t, n.Exe, "top", "--sample", "2s", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	parts := map[string]usage.Part{}
	goroutines := 0
	for _, p := range r.Parts {
		parts[p.Name] = p
		goroutines += p.Goroutines
	}
	for _, name := range []string{"apiserver", "controller-manager", "kubelet", "containerd"} {
		if p := parts[name]; p.Goroutines == 0 {
			t.Errorf("%s has %+v", name, p)
		}
	}
	// What others have allocated may be too little to be in the samples.
	if p := parts["apiserver"]; p.HeapBytes == 0 {
		t.Errorf("the API server has %+v", p)
	}
	// A busy node's come and go meanwhile.
	if shared := parts[usage.Shared].Goroutines; goroutines == 0 || shared*2 > goroutines {
		t.Errorf("of %d goroutines %d are nobody's", goroutines, shared)
	}
	if r.CPU <= 0 || r.ResidentBytes < r.HeapBytes {
		t.Errorf("%+v", r)
	}
	if table := n.Exec(t, n.Exe, "top", "--sample", "100ms"); !strings.Contains(table, " kubelet") || !strings.Contains(table, "MiB resident") {
		t.Errorf("as a table: %s", table)
	}
}
