package cli

import (
	"slices"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
)

func TestThePortForOtherNodesIsCheckedWhereItIsUsed(t *testing.T) {
	for _, c := range []struct {
		embedded bool
		runtime  string
		want     bool
	}{{false, "", false}, {true, "", true}, {true, "unix:///run/crio/crio.sock", false}} {
		cfg := config.Default()
		cfg.EmbeddedRegistry, cfg.Node.ContainerRuntimeEndpoint = c.embedded, c.runtime
		got := slices.ContainsFunc(listeners(cfg), func(l host.Listener) bool { return l.Addr.Port() == 5001 && l.Network == "tcp" })
		if got != c.want {
			t.Errorf("%+v: port 5001 is checked: %v", c, got)
		}
	}
}
