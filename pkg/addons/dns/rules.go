package dns

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// ApplyRules loads Rules(addr) into the kernel with the nft that is in PATH. It
// replaces the whole table in one transaction, so that it may be called again
// at any time.
func ApplyRules(ctx context.Context, addr netip.Addr) error {
	nft := exec.CommandContext(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(Rules(addr))
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("load packet-filter rules of cluster DNS: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Table is the table's family and name, as nft writes them.
func Table(addr netip.Addr) string {
	if addr.Is4() {
		return "ip " + RulesTable
	}
	return "ip6 " + RulesTable
}
