package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/knarr-dev/knarr/pkg/config"
)

// settleTime is for how long addresses have to stay as they are before they are
// believed: DHCP takes one away before it gives the next.
const settleTime = time.Second

// moved is closed when this machine has lost the address that its node is known
// by and has got another one. Kubelet, certificates, flannel and tunnels are made
// for an address, so that a restart in place, which pods do not notice, has all
// of them follow. An address that the user has named stays, come what may.
func (s *server) moved(ctx context.Context) (<-chan struct{}, error) {
	c := s.cfg
	if c.DisableAgent || c.IsSet("node-ip") || len(c.Node.IPs) == 0 {
		return nil, nil // never
	}
	updates := make(chan netlink.AddrUpdate, 16)
	err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) { s.log.Debug("watch this machine's addresses", "err", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch this machine's addresses: %w", err)
	}
	moved := make(chan struct{})
	go func() {
		settled := time.NewTimer(settleTime)
		defer settled.Stop()
		for {
			select {
			case _, open := <-updates:
				if !open {
					return
				}
				settled.Reset(settleTime)
			case <-settled.C:
				if now, ok := newAddress(c, config.ThisHost().Address); ok {
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

// newAddress is the machine's main one, if the node's is gone.
func newAddress(c *config.Config, mainAddress func(family int) (netip.Addr, error)) (netip.Addr, bool) {
	was, family := c.Node.IPs[0], 6
	if was.Is4() {
		family = 4
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr() == was {
			return netip.Addr{}, false
		}
	}
	now, err := mainAddress(family)
	if err != nil || c.Network.ClusterCIDR.Contains(now) || c.Network.ServiceCIDR.Contains(now) {
		return netip.Addr{}, false // not yet
	}
	return now, true
}
