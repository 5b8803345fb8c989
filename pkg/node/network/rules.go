package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"

	"sigs.k8s.io/knftables"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Table is the table of the packet filter that Rules keeps, as nft writes it.
const Table = "inet " + tableName

const tableName = "knarr"

// RulesConfig says what the table is about.
type RulesConfig struct {
	// ClusterCIDR holds the addresses of all pods.
	ClusterCIDR netip.Prefix
	// CacheDir is where libcni notes what it did for each pod. Default
	// /var/lib/cni, which is where every container runtime has it.
	CacheDir string
	Log      *slog.Logger
}

// Rules keeps the table that lets pods reach the world and the world reach host
// ports of pods.
//
// The table is a function of the configuration and of what libcni has noted
// about the pods that run, so it can be made again at any time. It does not
// depend on the node's own subnet.
//
// There are no rules that let forwarded packets pass: an accept in one table
// can't overrule a drop in another, and no table of ours drops them.
type Rules struct {
	cfg RulesConfig

	mu      sync.Mutex // held while the table is written
	nft     knftables.Interface
	applied []hostPort // what the table says; nil before the first time
}

var _ component.Component = (*Rules)(nil)

// NewRules returns rules that are in no table yet.
func NewRules(cfg RulesConfig) *Rules {
	if cfg.CacheDir == "" {
		cfg.CacheDir = "/var/lib/cni"
	}
	return &Rules{cfg: cfg}
}

// Name implements component.Component.
func (r *Rules) Name() string { return "pod-rules" }

// Needs implements component.Component: nothing, since the rules must be there
// before the first pod.
func (r *Rules) Needs() []string { return nil }

// Run closes ready once the table is there, and then keeps the host ports up to
// date. The table stays when it ends, as the pods do.
func (r *Rules) Run(ctx context.Context, ready chan<- struct{}) error {
	changes, err := watchResults(ctx, r.resultsDir())
	if err != nil {
		return err
	}
	if err := r.Apply(ctx); err != nil {
		return err
	}
	close(ready)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-changes:
			if err != nil {
				return err
			}
			err = r.update(ctx)
			if ctx.Err() != nil {
				// nft was killed, if it ran: all of a transaction holds or nothing.
				return ctx.Err()
			}
			if err != nil {
				return err
			}
		}
	}
}

// Apply makes the table anew, whatever is there: in one transaction, so that no
// packet sees half of it. It needs nft 1.0.1 or later in PATH.
func (r *Rules) Apply(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write(ctx, hostPorts(r.resultsDir(), r.cfg.ClusterCIDR))
}

// update is Apply if the host ports have changed.
func (r *Rules) update(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ports := hostPorts(r.resultsDir(), r.cfg.ClusterCIDR)
	if slices.Equal(ports, r.applied) {
		return nil
	}
	return r.write(ctx, ports)
}

func (r *Rules) write(ctx context.Context, ports []hostPort) error {
	if r.nft == nil {
		nft, err := knftables.New(knftables.InetFamily, tableName)
		if err != nil {
			return fmt.Errorf("write packet-filter table %s: %w", Table, err)
		}
		r.nft = nft
	}
	if err := r.nft.Run(ctx, r.transaction(ports)); err != nil {
		return fmt.Errorf("write packet-filter table %s: %w", Table, err)
	}
	old := r.applied
	r.applied = ports
	if len(ports) > 0 && r.cfg.ClusterCIDR.Addr().Is4() {
		if err := routeLoopback(); err != nil {
			r.cfg.Log.Warn("host ports of pods do not answer on 127.0.0.1", "err", err)
		}
	}
	if old == nil {
		// Nothing was plugged in or out while this process was away.
		return nil
	}
	if err := forgetFlows(old, ports); err != nil {
		r.cfg.Log.Warn("clients that send UDP to a host port all the time may miss its new pod", "err", err)
	}
	return nil
}

func (r *Rules) transaction(ports []hostPort) *knftables.Transaction {
	tx := r.nft.NewTransaction()
	// Adding first keeps the deletion from failing when there is none.
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pods of Knarr; made again when it is lost")})
	r.addMasquerade(tx)
	r.addHostPorts(tx, ports)
	return tx
}

func (r *Rules) addMasquerade(tx *knftables.Transaction) {
	const chain = postroutingChain
	ip, multicast, cluster := "ip", "224.0.0.0/4", r.cfg.ClusterCIDR.Masked().String()
	v6 := r.cfg.ClusterCIDR.Addr().Is6()
	if v6 {
		ip, multicast = "ip6", "ff00::/8"
	}
	addChain(tx, chain, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority)
	addRule(tx, chain, ip, "saddr", cluster, ip, "daddr != {", cluster, ",", multicast, "} masquerade fully-random")
	// What the node itself, or a client through it, sends to a Service has the
	// address of another link. The answer would take another way back.
	addRule(tx, chain, "oifname", OverlayName(v6), ip, "saddr !=", cluster, "masquerade fully-random")
}

// Names in the table.
const (
	postroutingChain = "postrouting"
	guardChain       = "guard"
	anyAddrMap       = "hostports"
	oneAddrMap       = "hostports-on-address"
	hairpinSet       = "hairpin"
)

func (r *Rules) addHostPorts(tx *knftables.Transaction, ports []hostPort) {
	ip := "ip"
	if r.cfg.ClusterCIDR.Addr().Is6() {
		ip = "ip6"
	}
	addrType := map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[ip]
	tx.Add(&knftables.Map{Name: anyAddrMap, Type: knftables.Concat("inet_proto . inet_service :", addrType, ". inet_service")})
	tx.Add(&knftables.Map{Name: oneAddrMap, Type: knftables.Concat("inet_proto .", addrType, ". inet_service :", addrType, ". inet_service")})
	tx.Add(&knftables.Set{Name: hairpinSet, Type: knftables.Concat(addrType, ".", addrType)})

	// Named as their hooks.
	for _, hook := range []knftables.BaseChainHook{knftables.PreroutingHook, knftables.OutputHook} {
		chain := string(hook)
		addChain(tx, chain, knftables.NATType, hook, knftables.DNATPriority)
		addRule(tx, chain, "fib daddr type local dnat", ip, "to meta l4proto .", ip, "daddr . th dport map @", oneAddrMap)
		addRule(tx, chain, "fib daddr type local dnat", ip, "to meta l4proto . th dport map @", anyAddrMap)
	}
	// A pod that reaches itself must not see its own address as the client's.
	addRule(tx, postroutingChain, ip, "saddr .", ip, "daddr @", hairpinSet, "masquerade fully-random")
	if ip == "ip" {
		addRule(tx, postroutingChain, "oifname", BridgeName, "ip saddr 127.0.0.0/8 masquerade fully-random")
		// routeLoopback would let pods reach what listens on loopback only.
		addChain(tx, guardChain, knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority)
		addRule(tx, guardChain, "iifname", BridgeName, "ip daddr 127.0.0.0/8 drop")
	}

	pods := make(map[netip.Addr]bool)
	for _, p := range ports {
		target := []string{p.Pod.String(), strconv.Itoa(int(p.PodPort))}
		port := strconv.Itoa(int(p.Port))
		e := &knftables.Element{Map: anyAddrMap, Key: []string{p.Protocol, port}, Value: target}
		if p.Addr.IsValid() {
			e = &knftables.Element{Map: oneAddrMap, Key: []string{p.Protocol, p.Addr.String(), port}, Value: target}
		}
		tx.Add(e)
		if !pods[p.Pod] {
			pods[p.Pod] = true
			tx.Add(&knftables.Element{Set: hairpinSet, Key: []string{p.Pod.String(), p.Pod.String()}})
		}
	}
}

func addChain(tx *knftables.Transaction, name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) {
	tx.Add(&knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
}

func addRule(tx *knftables.Transaction, chain string, words ...any) {
	tx.Add(&knftables.Rule{Chain: chain, Rule: knftables.Concat(words...)})
}

// routeLoopback lets packets from 127.0.0.1 go to pods. The setting is the
// bridge's alone and goes with it.
func routeLoopback() error {
	err := os.WriteFile("/proc/sys/net/ipv4/conf/"+BridgeName+"/route_localnet", []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		// No bridge: what is noted is about pods that are gone.
		return nil
	}
	return err
}
