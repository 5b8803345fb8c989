package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/knarr-dev/knarr/pkg/dial"
)

const (
	// directLead is how long the first way may take before the other is tried
	// as well.
	directLead = 300 * time.Millisecond
	// memory is how long the way that won counts.
	memory = 5 * time.Minute
	// maxRemembered bounds the ways that are remembered.
	maxRemembered = 4096
)

// Tunnels is what a Dialer needs of a [Server].
type Tunnels interface {
	Connected(node string) bool
	Dial(ctx context.Context, node string, addr netip.AddrPort) (net.Conn, error)
}

// DialerConfig is what a Dialer needs to know.
type DialerConfig struct {
	// Direct connects without a tunnel. Default: that of dial.Dialer.
	Direct dial.Func
	// Tunnels is the Server. It must not be nil.
	Tunnels Tunnels
	// NodeOf tells which node a host belongs to: a node by its name or one of
	// its addresses, a pod by its address. Hosts of no node are dialled
	// directly. It must not be nil and is asked at each dial.
	NodeOf func(host string) (node string, ok bool)
	// TunnelOnly tells that a host of a node must not be dialled directly while
	// the node has a tunnel, say because that comes from another address than
	// the node's (Server.Nodes). nil: never.
	TunnelOnly func(node, host string) bool
	// Log must not be nil.
	Log *slog.Logger
}

// Dialer connects an API server to kubelets and pods: directly where it can, and
// through the node's tunnel where it can't. Make it with NewDialer.
type Dialer struct {
	cfg DialerConfig

	mu  sync.Mutex
	won map[string]outcome // by host, and by node with a slash before it
}

// outcome is the way that won.
type outcome struct {
	tunnel bool
	until  time.Time
}

// NewDialer makes a Dialer.
func NewDialer(cfg DialerConfig) *Dialer {
	if cfg.Direct == nil {
		cfg.Direct = dial.Dialer().DialContext
	}
	return &Dialer{cfg: cfg, won: make(map[string]outcome)}
}

// DialContext connects to addr, host:port, where the host is the address or the
// name of a node, the address of a pod, or anything else.
//
// Without a tunnel of the node it dials directly. With one, it dials directly
// and, 300 ms later or when that failed, through the tunnel; the first that
// connects is taken. What won is tried first for the next 5 minutes: for the
// host, and for hosts of the same node of which nothing is known. Through the
// tunnel a node that is called by its name is reached at its loopback address.
//
// A direct dial may reach a wrong machine: where agents behind NAT have private
// addresses, the server may have a neighbour with the same one. Whoever uses the
// connection has to check whom it speaks to, as TLS does with kubelets (their
// certificates name the node), and TunnelOnly can keep from dialling directly.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	node, ok := d.cfg.NodeOf(host)
	if !ok || !d.cfg.Tunnels.Connected(node) {
		return d.cfg.Direct(ctx, network, addr)
	}
	target, err := targetOf(host, port)
	if err != nil {
		return nil, fmt.Errorf("dial %s on node %s: %w", addr, node, err)
	}
	direct := func(ctx context.Context) (net.Conn, error) {
		c, err := d.cfg.Direct(ctx, network, addr)
		if err != nil {
			return nil, fmt.Errorf("directly: %w", err)
		}
		return c, nil
	}
	through := func(ctx context.Context) (net.Conn, error) {
		return d.cfg.Tunnels.Dial(ctx, node, target)
	}
	if d.cfg.TunnelOnly != nil && d.cfg.TunnelOnly(node, host) {
		return through(ctx)
	}
	ways, second := []dial.Attempt{direct, through}, true
	if d.tunnelFirst(node, host) {
		ways, second = []dial.Attempt{through, direct}, false
	}
	c, i, err := dial.First(ctx, directLead, ways...)
	if err != nil {
		return nil, fmt.Errorf("dial %s on node %s: %w", addr, node, err)
	}
	d.remember(node, host, (i == 1) == second)
	return c, nil
}

// targetOf is what the node is asked to connect to.
func targetOf(host, port string) (netip.AddrPort, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), nil
}

func (d *Dialer) tunnelFirst(node, host string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, key := range []string{host, "/" + node} {
		if o, ok := d.won[key]; ok && now.Before(o.until) {
			return o.tunnel
		}
	}
	return false
}

// remember keeps an outcome for its time; one that is known already does not
// live longer by it, so that the direct way gets its chance again.
func (d *Dialer) remember(node, host string, tunnel bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if len(d.won) >= maxRemembered {
		clear(d.won)
	}
	for _, key := range []string{host, "/" + node} {
		if o := d.won[key]; o.tunnel != tunnel || !now.Before(o.until) {
			d.won[key] = outcome{tunnel, now.Add(memory)}
			d.cfg.Log.Debug("the way to a host of a node", "node", node, "host", host, "tunnel", tunnel)
		}
	}
}
