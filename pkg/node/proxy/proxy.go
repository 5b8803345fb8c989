// Package proxy makes Services work on a node: it runs upstream's kube-proxy, in
// nftables mode, in this process.
//
// Upstream's own runner can't be stopped, so only its rule writer is used. Around
// it are informers, servers and a sync loop that end with their context. The
// rules stay in place when they do, and Services go on answering. The next run
// takes the rules over in one transaction for each address family.
package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/host"
)

// Config is what kube-proxy is told.
type Config struct {
	// NodeName is this machine's name in the cluster.
	NodeName string
	// NodeIPs are this machine's addresses, at most one of each family. NodePorts
	// are served on them unless Args say otherwise. With none, they are taken from
	// the Node, and nothing is proxied before it has one.
	NodeIPs []netip.Addr
	// ClusterCIDRs are where pods get their addresses, at most one of each family.
	// Services are proxied for these families; with none, for those of the node.
	ClusterCIDRs []netip.Prefix
	// Client is called once the components of Needs are ready.
	Client func() (kubernetes.Interface, error)
	// Needs names what must be ready first, besides nft in the bundle.
	Needs []string
	// SetSysctls sets the sizes and timeouts of the connection tracker and keeps the
	// old values for whoever uninstalls. With nil they stay as they are.
	SetSysctls func([]host.Sysctl) error
	// Args are the user's upstream flags, name=value.
	Args []string
	Log  *slog.Logger
}

// Proxy is the component.
//
// It runs nft by its name, for every change of a Service or its endpoints.
type Proxy struct {
	cfg      Config
	settings settings
	log      *slog.Logger

	mu       sync.Mutex
	families []*family // of the run that is on
}

var _ component.Component = (*Proxy)(nil)

// New returns the component. It fails if the user's flags are wrong. Upstream
// feature gates among them are set for the whole process, here and now.
func New(cfg Config) (*Proxy, error) {
	s, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	return &Proxy{cfg: cfg, settings: s, log: log.With("component", "kube-proxy")}, nil
}

// Name implements component.Component.
func (p *Proxy) Name() string { return "kube-proxy" }

// Needs implements component.Component.
func (p *Proxy) Needs() []string { return append([]string{"bundle"}, p.cfg.Needs...) }

// Tables names the tables that the proxy writes, as nft does ("ip kube-proxy").
// Whoever sees one lose something calls Resync.
func (p *Proxy) Tables() []string {
	var names []string
	for _, f := range p.settings.families {
		names = append(names, tableFamily(f)+" kube-proxy")
	}
	return names
}

// Resync writes every rule anew, whatever the kernel has, and returns when that
// is done, ctx has ended or the proxy stops. It may be called at any time; while
// the proxy does not run it does nothing, since a run begins with the same.
func (p *Proxy) Resync(ctx context.Context) {
	p.mu.Lock()
	families := p.families
	p.mu.Unlock()
	var done []<-chan struct{}
	for _, f := range families {
		done = append(done, f.resync())
	}
	for _, d := range done {
		select {
		case <-d:
		case <-ctx.Done():
			return
		}
	}
}

// Run closes ready once the rules of all Services that exist are written.
func (p *Proxy) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := p.cfg.Client()
	if err != nil {
		return fmt.Errorf("create kube-proxy's client: %w", err)
	}
	metrics.RegisterMetrics(p.settings.Mode)

	var families []*family
	parent := ctx
	ctx, cancel := context.WithCancelCause(parent)
	var tasks sync.WaitGroup
	defer func() {
		cancel(nil)
		tasks.Wait()
		p.publish(nil)
		for _, f := range families {
			f.close()
		}
	}()
	stopped := func() error {
		if parent.Err() != nil {
			return nil
		}
		return context.Cause(ctx)
	}

	// The lists are on their way while nft is tried out.
	in := newInformers(client, p.cfg.NodeName)
	for _, i := range in.all() {
		tasks.Go(func() { i.RunWithContext(ctx) })
	}
	n, err := watchNode(in.node, p.settings.complete)
	if err != nil {
		return err
	}
	select {
	case <-n.complete:
	case <-ctx.Done():
		return stopped()
	}

	health := healthcheck.NewProxyHealthServer(p.settings.HealthzBindAddress, 2*p.settings.SyncPeriod.Duration, n)
	for _, f := range p.settings.families {
		made, err := p.newFamily(ctx, f, n, health)
		if err != nil {
			return err
		}
		families = append(families, made)
	}
	if !p.follow(ctx, in, n, families) {
		return stopped()
	}
	for _, f := range families {
		tasks.Go(func() { f.run(ctx) })
	}
	p.publish(families)
	p.serve(ctx, &tasks, health, cancel)
	for _, f := range families {
		select {
		case <-f.synced:
		case <-ctx.Done():
			return stopped()
		}
	}
	close(ready)
	p.tuneConntrack()
	<-ctx.Done()
	return stopped()
}

func (p *Proxy) publish(families []*family) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.families = families
}

// newFamily makes the rule writer of one address family. It runs nft twice.
func (p *Proxy) newFamily(ctx context.Context, ip v1.IPFamily, n *node, health *healthcheck.ProxyHealthServer) (*family, error) {
	ips := p.settings.nodeIPs(n.Node())
	return newFamily(ctx, &p.settings, ip, p.cfg.NodeName, ips, n, health, p.log)
}

// follow hands every Service and its endpoints to the families, and reports
// whether those that existed have arrived.
func (p *Proxy) follow(ctx context.Context, in informers, n *node, families []*family) bool {
	n.onTopology(func() {
		for _, f := range families {
			f.requestFull()
		}
	})
	checks := []cache.DoneChecker{n.listed}
	add := func(i cache.SharedIndexInformer, h cache.ResourceEventHandler) {
		if r, err := i.AddEventHandler(h); err == nil { // else it has stopped, as ctx has
			checks = append(checks, r.HasSyncedChecker())
		}
	}
	for _, f := range families {
		add(in.services, f.services())
		add(in.endpoints, f.endpoints())
		add(in.serviceCIDRs, f.serviceCIDRs())
	}
	return cache.WaitFor(ctx, "", checks...) && ctx.Err() == nil
}

// ipOf returns the address as the net package has it.
func ipOf(a netip.Addr) net.IP { return net.IP(a.Unmap().AsSlice()) }

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
