package config_test

import (
	"flag"
	"os"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

func TestReferenceInDocsIsCurrent(t *testing.T) {
	const path = "../../docs/configuration.md"
	if *update {
		if err := os.WriteFile(path, []byte(config.Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != config.Reference() {
		t.Errorf("%s is stale; run: go test ./pkg/config -run Reference -update", path)
	}
}
