package harness

import (
	"net/netip"
	"testing"

	"github.com/knarr-dev/knarr/pkg/ports"
)

// CheckPorts compares every socket that is listened on in the host, on whichever
// address, with the table of package ports. The node must have the default
// settings, and no workload that listens.
func (n *Node) CheckPorts(t testing.TB, role ports.Role) {
	t.Helper()
	dns := netip.MustParseAddr("10.43.0.10")
	seen := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		sockets, err := ports.ParseProc(file, n.Exec(t, "cat", "/proc/net/"+file))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sockets {
			p, ok := ports.Listed(s, role, dns)
			if !ok {
				t.Errorf("%s is listened on, and is not in docs/ports.md", s)
			}
			seen[p.Network+p.Use] = true
		}
	}
	for _, p := range ports.Table() {
		for _, r := range p.Roles {
			if r == role && !seen[p.Network+p.Use] {
				t.Errorf("%s %d (%s) is in docs/ports.md, and nobody listens there", p.Network, p.Port, p.Use)
			}
		}
	}
}
