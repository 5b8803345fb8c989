package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // --flannel-backend=host-gw
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // --flannel-backend=vxlan
	"github.com/flannel-io/flannel/pkg/subnet"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/host"
)

// Flannel's defaults, by which nodes that run upstream's flannel find ours.
const (
	vxlanPort = 8472 // UDP
	vxlanID   = 1
)

// FlannelConfig says how nodes are connected.
type FlannelConfig struct {
	NodeName    string
	ClusterCIDR netip.Prefix
	// Backend is BackendVXLAN or BackendHostGW.
	Backend string
	// Iface is --flannel-iface; may be empty.
	Iface string
	// NodeIP is the node's address, of the family of ClusterCIDR.
	NodeIP netip.Addr
	// Client is called once the components in Needs are ready.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	Log    *slog.Logger
}

// Flannel connects the pods of this node with those of all others: upstream's
// backends, over a subnet manager of our own. It keeps routes, and for vxlan a
// link and its neighbours; Rules does the rest of what flanneld would do.
//
// Everything it makes stays when Run ends, so that pods go on talking.
type Flannel struct{ cfg FlannelConfig }

var _ component.Component = (*Flannel)(nil)

// NewFlannel returns a flannel that has made nothing yet.
func NewFlannel(cfg FlannelConfig) *Flannel { return &Flannel{cfg: cfg} }

// Name implements component.Component.
func (f *Flannel) Name() string { return "flannel" }

// Needs implements component.Component.
func (f *Flannel) Needs() []string { return f.cfg.Needs }

// Run waits for the node's subnet and closes ready once other nodes can know
// the way to this one, or if the machine has no network to reach them by: that is
// waited for, and pods of this node do without. It fails when the link that was
// named is missing or the overlay's link was deleted, to be started again.
func (f *Flannel) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := f.cfg.Client()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	link, err := ExternalLink(f.cfg.Iface, f.cfg.NodeIP)
	if errors.Is(err, errNoWayOut) {
		f.cfg.Log.Info("flannel waits for this machine's network")
		close(ready)
		ready = nil
		link, err = f.awaitLink(ctx)
	}
	if err != nil {
		return err
	}
	config, err := f.config(link)
	if err != nil {
		return err
	}
	known := newLeases(client, f.cfg.NodeName, config, stop)
	watchNodes(ctx, client, "", known.see)
	select {
	case <-known.owned:
	case <-ctx.Done():
		return context.Cause(ctx)
	}

	ext := external(link)
	b, err := backend.NewManager(ctx, known, ext).GetBackend(f.cfg.Backend)
	if err != nil {
		return fmt.Errorf("start flannel backend %s on link %s: %w", f.cfg.Backend, link.Name, err)
	}
	network, err := b.RegisterNetwork(ctx, new(sync.WaitGroup), config)
	if err != nil {
		return fmt.Errorf("start flannel backend %s on link %s: %w", f.cfg.Backend, link.Name, err)
	}
	f.cfg.Log.Debug("flannel is connected", "backend", f.cfg.Backend, "link", link.Name, "address", link.Addr, "mtu", network.MTU())
	if ready != nil {
		close(ready)
	}

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		network.Run(ctx)
	}()
	select {
	case <-ended:
		if ctx.Err() == nil {
			return errors.New("flannel's backend ended by itself")
		}
	case <-ctx.Done():
		// Not waiting for ended: upstream's Run waits for its own helper, which
		// may be about to hand over a change that nobody takes any more.
	}
	return context.Cause(ctx)
}

// awaitLink waits for a link to the other nodes.
func (f *Flannel) awaitLink(ctx context.Context) (link Link, err error) {
	found := func(host.Network) bool {
		link, err = ExternalLink(f.cfg.Iface, f.cfg.NodeIP)
		return !errors.Is(err, errNoWayOut)
	}
	if err := host.AwaitNetwork(ctx, found, func() {}); err != nil {
		return Link{}, err
	}
	return link, err
}

// config is what upstream reads from net-conf.json.
func (f *Flannel) config(link Link) (*subnet.Config, error) {
	v6 := f.cfg.ClusterCIDR.Addr().Is6()
	if f.cfg.NodeIP.Is6() != v6 {
		return nil, fmt.Errorf("flannel can't connect pods of %s over the node's address %s, which is of the other family", f.cfg.ClusterCIDR, f.cfg.NodeIP)
	}
	settings, err := json.Marshal(map[string]any{
		"Type": f.cfg.Backend, "VNI": vxlanID, "Port": vxlanPort,
		// The backend takes 50 bytes off, too few for an IPv6 header.
		"MTU": link.MTU - overhead(f.cfg.Backend, v6) + 50,
	})
	if err != nil {
		return nil, fmt.Errorf("configure flannel: %w", err)
	}
	c := &subnet.Config{EnableIPv4: !v6, EnableIPv6: v6, BackendType: f.cfg.Backend, Backend: settings}
	if v6 {
		c.IPv6Network = toIP6Net(f.cfg.ClusterCIDR.Masked())
	} else {
		c.Network = toIP4Net(f.cfg.ClusterCIDR.Masked())
	}
	return c, nil
}

func external(l Link) *backend.ExternalInterface {
	ext := &backend.ExternalInterface{
		Iface:     &net.Interface{Index: l.Index, MTU: l.MTU, Name: l.Name},
		IfaceName: l.Name,
	}
	if addr := net.IP(l.Addr.AsSlice()); l.Addr.Is6() {
		ext.IfaceV6Addr, ext.ExtV6Addr = addr, addr
	} else {
		ext.IfaceAddr, ext.ExtAddr = addr, addr
	}
	return ext
}
