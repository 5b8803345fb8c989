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

// RulesTable is the nftables table that Rules makes, in the family of the
// address: ip or ip6.
const RulesTable = "knarr-dns"

// Rules is an nftables script that belongs to the cluster DNS address addr. It
// replaces the whole table when it is run again.
//
// Its first part keeps DNS packets out of connection tracking. kube-proxy drops
// new connections from the host to addresses of the Service network that it
// does not serve; it judges tracked packets only. (It costs less, too.) Its
// second part keeps everything else that listens on all addresses of the host,
// a secure shell for example, from being reached from pods by this address.
func Rules(addr netip.Addr) string {
	family := "ip"
	if addr.Is6() {
		family = "ip6"
	}
	return strings.NewReplacer("FAMILY", family, "TABLE", RulesTable, "ADDR", addr.String()).Replace(`
add table FAMILY TABLE
delete table FAMILY TABLE
table FAMILY TABLE {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		FAMILY daddr ADDR udp dport 53 notrack
		FAMILY daddr ADDR tcp dport 53 notrack
	}
	chain output {
		type filter hook output priority raw; policy accept;
		FAMILY daddr ADDR udp dport 53 notrack
		FAMILY daddr ADDR tcp dport 53 notrack
		FAMILY saddr ADDR udp sport 53 notrack
		FAMILY saddr ADDR tcp sport 53 notrack
	}
	chain input {
		type filter hook input priority filter; policy accept;
		iif "lo" accept
		FAMILY daddr ADDR udp dport 53 accept
		FAMILY daddr ADDR tcp dport 53 accept
		FAMILY daddr ADDR meta l4proto { icmp, icmpv6 } accept
		FAMILY daddr ADDR reject
	}
}
`)
}
