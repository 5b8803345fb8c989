package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/durable"
	"github.com/knarr-dev/knarr/pkg/host"
)

const (
	// settleTime is for how long addresses have to stay as they are before they are
	// believed: DHCP takes one away before it gives the next.
	settleTime = time.Second
	// networkPatience is for how long a node that has had an address waits for its
	// machine to get one. Then it starts without: what it runs is needed, be there a
	// network or not. DHCP is mostly quicker, and when it is not the node follows.
	networkPatience = 10 * time.Second
)

// awaitAddress waits for what the node's address is taken from: at a boot DHCP may
// be later than this program. A node that has been here before does not wait for
// ever; it keeps the address that it had.
func awaitAddress(cmd *cobra.Command, c Commands, cfg *config.Config) error {
	if c.Network == nil || cfg.ControlPlaneOnly {
		return nil
	}
	last, named := lastAddresses(cfg), cfg.IsSet("node-ip")
	if named && len(last) == 0 {
		return nil // preflight tells of one that the machine has not
	}
	var now host.Network
	enough := func(n host.Network) bool {
		now = n
		return hasAll(n, last) || !named && hasDefaultRoute(n)
	}
	waiting := func() {
		fmt.Fprintln(cmd.ErrOrStderr(), "knarr: waiting for a default route, by which the node's address is found; --node-ip names one without it")
	}
	ctx := cmd.Context()
	if len(last) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, networkPatience)
		defer cancel()
		waiting = func() {
			if now.Holds(last[0]) { // as the process before us found already
				cancel()
				return
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "knarr: waiting up to %v for this machine's network\n", networkPatience)
		}
	}
	if err := c.Network(ctx, enough, waiting); err != nil && (cmd.Context().Err() != nil || ctx.Err() == nil) {
		return err
	}
	if keepAddresses(cfg, now); cfg.Node.IPsHeld {
		fmt.Fprintf(cmd.ErrOrStderr(), "knarr: this machine has no network: going on with the address that the node had, %s\n", joined(last))
	}
	return nil
}

// keepAddresses takes those of the node's last start where the machine has none to
// choose from, or has several and no way out to choose by.
func keepAddresses(cfg *config.Config, now host.Network) {
	last := lastAddresses(cfg)
	if len(last) > 0 && (cfg.IsSet("node-ip") || !hasDefaultRoute(now)) {
		cfg.Node.IPs, cfg.Node.IPsHeld = last, !hasAll(now, last)
	}
}

func hasDefaultRoute(n host.Network) bool {
	return n.DefaultRoute(false).Addr.IsValid() || n.DefaultRoute(true).Addr.IsValid()
}

// hasAll tells whether links have the addresses, of which there is at least one.
func hasAll(n host.Network, all []netip.Addr) bool {
	return len(all) > 0 && !slices.ContainsFunc(all, func(a netip.Addr) bool { return !n.Has(a) })
}

func joined(all []netip.Addr) string {
	var lines []string
	for _, a := range all {
		lines = append(lines, a.String())
	}
	return strings.Join(lines, ", ")
}

// addressFile has the node's addresses as of its last start, one in a line.
func addressFile(c *config.Config) string {
	return filepath.Join(c.AgentDir(), "network", "addresses")
}

// lastAddresses are the node's as of its last start, or none; also none if the user
// has named others since.
func lastAddresses(c *config.Config) []netip.Addr {
	if c.DisableAgent {
		return nil
	}
	all := readAddresses(addressFile(c))
	if c.IsSet("node-ip") && !slices.Equal(all, c.Node.IPs) {
		return nil
	}
	return all
}

func readAddresses(file string) (all []netip.Addr) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(content)) {
		a, err := netip.ParseAddr(strings.TrimSpace(line))
		if err != nil {
			return nil
		}
		all = append(all, a)
	}
	return all
}

// settleAddresses keeps the node's addresses for a start without a network, and
// takes those of before off the loopback link. What may be put there later is
// recorded now.
func (s *server) settleAddresses() error {
	c := s.cfg
	now, err := host.ReadNetwork()
	if err != nil {
		return fmt.Errorf("look for this machine's addresses: %w", err)
	}
	file := addressFile(c)
	for _, a := range readAddresses(file) {
		if slices.Contains(c.Node.IPs, a) {
			continue
		}
		if now.Holds(a) {
			if err := host.RemoveLoopback(a); err != nil {
				return err
			}
		}
		if err := s.ledger.Forget(host.LoopbackChange(a)); err != nil {
			return err
		}
	}
	var lines bytes.Buffer
	changes := []host.Change{host.LoopbackRouteChange(c.Network.ServiceCIDR)}
	for _, a := range c.Node.IPs {
		fmt.Fprintln(&lines, a)
		if !now.IsRouters(a) { // an uninstall would take that away
			changes = append(changes, host.LoopbackChange(a))
		}
	}
	if err := s.ledger.Record(changes...); err != nil {
		return err
	}
	if had, err := os.ReadFile(file); err == nil && bytes.Equal(had, lines.Bytes()) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the node's last addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("keep the node's addresses: %w", err)
	}
	if err := durable.Replace(file, 0o600, &lines); err != nil {
		return fmt.Errorf("keep the node's addresses: %w", err)
	}
	return nil
}

// moved is closed when this machine has lost the address that its node is known
// by and has got another one. Kubelet, certificates, flannel and tunnels are made
// for an address, so that a restart in place, which pods do not notice, has all
// of them follow. An address that the user has named stays, come what may.
func (s *server) moved(ctx context.Context) (<-chan struct{}, error) {
	c := s.cfg
	if c.DisableAgent || c.IsSet("node-ip") || len(c.Node.IPs) == 0 {
		return nil, nil // never
	}
	changes, err := host.WatchNetwork(ctx, func(err error) { s.log.Debug("watch this machine's addresses", "err", err) })
	if err != nil {
		return nil, err
	}
	moved := make(chan struct{})
	go func() {
		settled := time.NewTimer(settleTime)
		defer settled.Stop()
		for {
			select {
			case <-changes:
				settled.Reset(settleTime)
			case <-settled.C:
				n, err := host.ReadNetwork()
				if err != nil {
					s.log.Debug("look for this machine's addresses", "err", err)
					continue
				}
				if now, ok := newAddress(c, n); ok {
					s.log.Info("this machine has another address; restarting in place", "was", c.Node.IPs[0], "is", now)
					close(moved)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return moved, nil
}

// newAddress is the machine's main one, if the node's is gone. Without a default
// route nobody knows which that would be.
func newAddress(c *config.Config, n host.Network) (netip.Addr, bool) {
	was := c.Node.IPs[0]
	now := n.DefaultRoute(was.Is6()).Addr
	if n.Has(was) || !now.IsValid() || c.Network.ClusterCIDR.Contains(now) || c.Network.ServiceCIDR.Contains(now) {
		return netip.Addr{}, false
	}
	return now, true
}
