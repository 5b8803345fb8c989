package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/nat"
)

// Ways of a cluster's pods to the world, values of [Config.Net].
const (
	NetNone = "none"
	NetNAT  = "nat"
)

// resolvConf is where this machine's name servers stand.
const resolvConf = "/etc/resolv.conf"

// nameServer is where hosts with a way out find this machine's name servers, which
// may be on its loopback. It is one of the addresses that belong to no network of
// anybody's (RFC 7335).
func nameServer() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 0, 2}) }

// openOutlet gives the cluster's hosts a way out, if they are to have one. Their
// connections become this process's, so that nothing of the machine is set up.
func (k *keeper) openOutlet() error {
	if k.Config.Net != NetNAT {
		return nil
	}
	tun, err := k.lab.Outlet()
	if err != nil {
		return explain(fmt.Errorf("--net=nat: %w", err))
	}
	k.outlet, err = nat.New(tun, lab.OutletMTU, reachOutside)
	if err != nil {
		return fmt.Errorf("--net=nat: %w", err)
	}
	return nil
}

// reachOutside connects to an address as seen from within the cluster.
func reachOutside(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if to.Addr() != nameServer() {
		return dial.Dialer().DialContext(ctx, network, addr)
	}
	if to.Port() != 53 {
		return nil, fmt.Errorf("%s answers for names alone", addr)
	}
	// It is read each time: a laptop that moves has others.
	servers, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil, fmt.Errorf("find a name server: %w", err)
	}
	errs := []error{fmt.Errorf("%s names no server that answers", resolvConf)}
	for _, server := range servers.Servers {
		conn, err := dial.Dialer().DialContext(ctx, network, net.JoinHostPort(server, servers.Port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// resolvConfOfHosts is a node's resolv.conf; it is empty where that of the lab will do.
func (k *keeper) resolvConfOfHosts() string {
	if k.outlet == nil {
		return ""
	}
	text := "nameserver " + nameServer().String() + "\n"
	own, err := dns.ClientConfigFromFile(resolvConf)
	if err == nil && len(own.Search) > 0 {
		text = "search " + strings.Join(own.Search, " ") + "\n" + text
	}
	return text
}

// CheckNet tells what is wrong with a value of [Config.Net].
func CheckNet(how string) error {
	if !slices.Contains([]string{"", NetNone, NetNAT}, how) {
		return fmt.Errorf("--net %s: give none, or nat for pods to reach what this machine reaches", how)
	}
	return nil
}
