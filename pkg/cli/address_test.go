package cli

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
)

// machineWith is the network of a machine whose links have addresses: link, address, link, ….
// The default route goes by the first link.
func machineWith(route bool, links ...string) host.Network {
	var n host.Network
	for i := 0; i < len(links); i += 2 {
		a := netip.MustParseAddr(links[i+1])
		n.Addrs = append(n.Addrs, host.Addr{Prefix: netip.PrefixFrom(a, 24), Link: links[i], Global: links[i] != "lo"})
	}
	if route {
		n.Routes = []host.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: links[0]}}
	}
	return n
}

func TestANodeMovesOnlyWhenItsAddressIsGoneAndThereIsAnother(t *testing.T) {
	c := config.Default()
	c.Node.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.8")}
	byRouter := machineWith(true, "lo", "192.0.2.8")
	byRouter.Addrs[0].Global = true
	for what, row := range map[string]struct {
		now   host.Network
		moves bool
	}{
		"its address is one for the loopback link by a router":   {byRouter, false},
		"its address is there":                                   {machineWith(true, "eth0", "192.0.2.8"), false},
		"its address is there beside another":                    {machineWith(true, "eth0", "192.0.2.9", "eth1", "192.0.2.8"), false},
		"its address is gone":                                    {machineWith(true, "eth0", "192.0.2.9"), true},
		"its address is gone but for the loopback link":          {machineWith(true, "eth0", "192.0.2.9", "lo", "192.0.2.8"), true},
		"its address is gone, and there is none":                 {machineWith(false), false},
		"its address is gone, and there is a bridge of its own":  {machineWith(false, "docker0", "172.17.0.1"), false},
		"its address is gone, and the first is a pod bridge's":   {machineWith(true, "cni0", "10.42.0.1"), false},
		"its address is gone, and the first is in Service range": {machineWith(true, "x", "10.43.0.10"), false},
	} {
		if now, moves := newAddress(c, row.now); moves != row.moves {
			t.Errorf("%s: moves %v, to %s", what, moves, now)
		}
	}
}

func TestANodeStartsWithoutANetworkIfItHadOne(t *testing.T) {
	had := "192.0.2.8\n"
	for what, row := range map[string]struct {
		last  string // what is kept of the last start
		named string
		// now is what the machine has, all the time.
		now   host.Network
		ips   string // what is settled before the machine is asked for its address
		held  bool
		waits bool // for ever
	}{
		"first start, with a network":            {now: machineWith(true, "eth0", "192.0.2.8")},
		"first start, without":                   {now: machineWith(false), waits: true},
		"first start, an address and no way out": {now: machineWith(false, "eth0", "192.0.2.8"), waits: true},
		"again, with the same address":           {last: had, now: machineWith(true, "eth0", "192.0.2.8")},
		"again, with another address":            {last: had, now: machineWith(true, "eth0", "192.0.2.9")},
		"again, without a network":               {last: had, now: machineWith(false), ips: had, held: true},
		"again, held by the process before":      {last: had, now: machineWith(false, "lo", "192.0.2.8"), ips: had, held: true},
		"again, with no way out":                 {last: had, now: machineWith(false, "docker0", "172.17.0.1", "eth0", "192.0.2.8"), ips: had},
		"again, another's link alone":            {last: had, now: machineWith(false, "docker0", "172.17.0.1"), ips: had, held: true},
		"damaged memory":                         {last: "192.0.2", now: machineWith(false), waits: true},
		"named, there":                           {last: had, named: "192.0.2.8", now: machineWith(true, "eth0", "192.0.2.8"), ips: had},
		"named, gone":                            {last: had, named: "192.0.2.8", now: machineWith(true, "eth0", "192.0.2.9"), ips: had, held: true},
		"named anew":                             {last: had, named: "192.0.2.7", now: machineWith(false), ips: "192.0.2.7\n"},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				flags := []config.Given{{Name: "data-dir", Value: t.TempDir()}}
				if row.named != "" {
					flags = append(flags, config.Given{Name: "node-ip", Value: row.named})
				}
				cfg, _, err := config.Load(config.Sources{Flags: flags})
				if err != nil {
					t.Fatal(err)
				}
				if row.last != "" {
					if err := os.MkdirAll(filepath.Dir(addressFile(cfg)), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(addressFile(cfg), []byte(row.last), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				cmd := &cobra.Command{}
				cmd.SetContext(ctx)
				cmd.SetErr(t.Output())
				err = awaitAddress(cmd, Commands{Network: func(ctx context.Context, enough func(host.Network) bool, waiting func()) error {
					if enough(row.now) {
						return nil
					}
					waiting()
					<-ctx.Done()
					return ctx.Err()
				}}, cfg)
				if waited := ctx.Err() != nil; waited != row.waits || (err != nil) != row.waits {
					t.Fatalf("waited for ever: %v; %v", waited, err)
				}
				ips := ""
				for _, a := range cfg.Node.IPs {
					ips += a.String() + "\n"
				}
				if ips != row.ips || cfg.Node.IPsHeld != row.held {
					t.Errorf("settled on %q, held: %v", ips, cfg.Node.IPsHeld)
				}
			})
		})
	}
}
