package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
)

// family proxies the Services of one address family.
//
// Upstream's rule writer has a loop of its own that never ends, and is not used:
// each time something changed, run tells the writer once more that all Services
// are known, at which it writes what has changed since.
type family struct {
	ip       v1.IPFamily
	settings *settings
	writer   *nftables.Proxier
	node     *node
	health   *healthcheck.ProxyHealthServer
	checks   healthcheck.ServiceHealthServer // the writer's
	faults   faults
	log      *slog.Logger

	changed chan struct{} // holds one if there is something to write
	synced  chan struct{} // closed after the first sync that succeeded
	ended   chan struct{} // closed when run has returned

	mu   sync.Mutex
	full bool                // the next sync writes everything
	wait []chan struct{}     // closed when it has
	cidr map[string][]string // by the name of the ServiceCIDR
}

func newFamily(ctx context.Context, s *settings, ip v1.IPFamily, nodeName string, ips map[v1.IPFamily]net.IP, n *node, health *healthcheck.ProxyHealthServer, log *slog.Logger) (*family, error) {
	f := &family{
		ip: ip, settings: s, node: n, health: health,
		log:     log.With("family", string(ip)),
		changed: make(chan struct{}, 1), synced: make(chan struct{}), ended: make(chan struct{}),
		full: true, cidr: make(map[string][]string),
	}
	f.faults = newFaults(f.log.Handler())
	ctx = klog.NewContext(ctx, f.faults.logger())
	var err error
	f.writer, err = nftables.NewProxier(ctx, ip, s.SyncPeriod.Duration, 0, s.Linux.MasqueradeAll, int(*s.NFTables.MasqueradeBit),
		s.localTraffic(ip, n.Node()), nodeName, ips[ip],
		nil, // a recorder would tick; that a health check's port is taken is told in the log
		health, s.nodePorts(ips), false)
	if err != nil {
		return nil, fmt.Errorf("set up %s Services with nftables (is nft 1.0.1 or later in PATH, and the kernel module nf_tables loaded?): %w", ip, err)
	}
	if f.checks, err = unexported[healthcheck.ServiceHealthServer](f.writer, "serviceHealthServer"); err != nil {
		return nil, err
	}
	return f, nil
}

// run writes the rules whenever something changed, and all of them hourly.
func (f *family) run(ctx context.Context) {
	defer close(f.ended)
	f.health.Updated(f.ip) // healthy until something stays unwritten for long
	f.writer.OnEndpointSlicesSynced()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-f.changed:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		next := time.Duration(proxyutil.FullSyncPeriod)
		if err := f.sync(); err != nil {
			next = min(time.Second<<min(failures, 10), f.settings.SyncPeriod.Duration)
			if failures++; failures == 1 {
				f.log.Warn("Services may be out of date: their rules could not be written, will be tried again", "in", next, "err", err)
			}
		} else if failures > 0 {
			f.log.Info("rules of Services are written again", "failures", failures)
			failures = 0
		}
		timer.Reset(next)
		if !pause(ctx, f.settings.rest(time.Since(began))) {
			return
		}
	}
}

// sync writes what has changed, or everything when asked to.
func (f *family) sync() error {
	select {
	case <-f.changed: // what it stands for is written now
	default:
	}
	f.mu.Lock()
	full, wait := f.full, f.wait
	f.full, f.wait = false, nil
	f.mu.Unlock()
	if full {
		// The one call that makes the writer distrust what it knows of the kernel.
		f.writer.OnTopologyChange(f.node.topology())
	}
	written := f.write()
	if !written {
		// The second attempt writes everything: mostly someone took away what the
		// first built on.
		written = f.write()
	}
	if !written {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.full, f.wait = true, append(f.wait, wait...)
		return f.faults.last()
	}
	for _, w := range wait {
		close(w)
	}
	select {
	case <-f.synced:
	default:
		close(f.synced)
	}
	return nil
}

// write has the writer write, and says whether it could. The writer tells that
// only to the health server.
func (f *family) write() bool {
	f.faults.forget()
	before := f.health.Health().Status[f.ip].LastUpdated
	f.writer.OnServiceSynced()
	return !f.health.Health().Status[f.ip].LastUpdated.Equal(before)
}

// kick has run write what changed.
func (f *family) kick() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// requestFull has run write everything.
func (f *family) requestFull() {
	f.mu.Lock()
	f.full = true
	f.mu.Unlock()
	f.kick()
}

// resync is requestFull; what it returns is closed when it is done, or when
// there is no one left to do it.
func (f *family) resync() <-chan struct{} {
	done := make(chan struct{})
	f.mu.Lock()
	f.full, f.wait = true, append(f.wait, done)
	f.mu.Unlock()
	select {
	case <-f.ended:
		f.release()
	default:
		f.kick()
	}
	return done
}

// release lets go of who waits.
func (f *family) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.wait {
		close(w)
	}
	f.wait = nil
}

// close ends what the writer left open, once nothing calls it any more. The
// rules stay.
func (f *family) close() {
	f.release()
	if err := f.checks.SyncServices(nil); err != nil {
		f.log.Warn("the ports of Services' health checks stay open", "err", err)
	}
}

func (f *family) services() cache.ResourceEventHandler {
	return handler[v1.Service]{
		update: func(old, new *v1.Service) { f.writer.OnServiceUpdate(old, new); f.kick() },
	}
}

func (f *family) endpoints() cache.ResourceEventHandler {
	return handler[discovery.EndpointSlice]{
		update: func(old, new *discovery.EndpointSlice) {
			switch {
			case string(either(old, new).AddressType) != string(f.ip):
				return
			case new == nil:
				f.writer.OnEndpointSliceDelete(old)
			default:
				f.writer.OnEndpointSliceUpdate(old, new)
			}
			f.kick()
		},
	}
}

// serviceCIDRs tells the writer which addresses belong to Services, so that
// packets to those that none has are dropped.
func (f *family) serviceCIDRs() cache.ResourceEventHandler {
	return handler[networking.ServiceCIDR]{
		update: func(old, new *networking.ServiceCIDR) {
			if old != nil && new != nil && slices.Equal(old.Spec.CIDRs, new.Spec.CIDRs) {
				return // a change of its status
			}
			f.mu.Lock()
			if new == nil {
				delete(f.cidr, old.Name)
			} else {
				f.cidr[new.Name] = new.Spec.CIDRs
			}
			all := slices.Concat(slices.Collect(maps.Values(f.cidr))...)
			f.mu.Unlock()
			slices.Sort(all)
			all = slices.Compact(all)
			f.writer.OnServiceCIDRsChanged(all)
			f.requestFull()
		},
	}
}
