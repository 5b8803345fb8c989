// Package nodeport lets `curl localhost:<nodePort>` work on the node, and `curl
// localhost:<port>` for Services of type LoadBalancer that have the node's address.
//
// kube-proxy's nftables mode leaves the loopback addresses out, since packets
// that come from them can't be sent on. So this package listens there itself
// and forwards to the Service's cluster address, which leaves the choice of an
// endpoint to kube-proxy.
package nodeport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
)

// otherProxyLabel marks a Service that kube-proxy leaves to another proxy.
const otherProxyLabel = "service.kubernetes.io/service-proxy-name"

// Forwarder listens on 127.0.0.1 and ::1 for the node ports of all Services, and
// for the ports of those that are published at an address of this node, TCP and
// UDP, for as long as each exists. An address of the loopback interface
// that is not up is left out. Connections that stand when a Service goes are
// left to their endpoints, as kube-proxy does.
type Forwarder struct {
	services cache.SharedIndexInformer
	addrs    []netip.Addr // the node's
	needs    []string
	log      *slog.Logger

	open map[front]*listener
	// taken holds the fronts that could not be listened on, so that each is told
	// once. They are tried again whenever a Service changes.
	taken map[front]bool
}

var _ component.Component = (*Forwarder)(nil)

// New returns a forwarder for the Services that the informer sees, on a node with
// these addresses. Whoever owns the informer runs it. Needs names what must be
// ready first.
func New(services cache.SharedIndexInformer, addrs []netip.Addr, log *slog.Logger, needs ...string) *Forwarder {
	return &Forwarder{services: services, addrs: addrs, needs: needs, log: log}
}

// Name implements component.Component.
func (f *Forwarder) Name() string { return "nodeport" }

// Needs implements component.Component.
func (f *Forwarder) Needs() []string { return f.needs }

// front is an address that is listened on.
type front struct {
	network string // tcp or udp
	addr    netip.AddrPort
}

// back is where a front forwards to.
type back struct {
	addr    netip.AddrPort
	service string // namespace/name, for messages
}

// listener is an open front.
type listener struct {
	back
	close func()
}

// Run closes ready once the Services that existed at start are listened for.
// When ctx ends it closes every listener and every connection.
func (f *Forwarder) Run(ctx context.Context, ready chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	f.open, f.taken = make(map[front]*listener), make(map[front]bool)
	defer func() {
		cancel()
		for _, l := range f.open {
			l.close()
		}
		tasks.Wait()
	}()

	changed := make(chan struct{}, 1)
	note := func() {
		select {
		case changed <- struct{}{}:
		default: // a look that comes later sees this change too
		}
	}
	handle, err := f.services.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { note() },
		UpdateFunc: func(any, any) { note() },
		DeleteFunc: func(any) { note() },
	})
	if err != nil {
		return fmt.Errorf("watch Services for their node ports: %w", err)
	}
	defer func() { _ = f.services.RemoveEventHandler(handle) }()

	synced := handle.HasSyncedChecker().Done()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-synced:
			synced = nil
			f.settle(ctx, &tasks)
			close(ready)
		case <-changed:
			f.settle(ctx, &tasks)
		}
	}
}

// settle opens and closes listeners until they are what the Services ask for.
func (f *Forwarder) settle(ctx context.Context, tasks *sync.WaitGroup) {
	want := f.wanted()
	for at, l := range f.open {
		if to, ok := want[at]; !ok || to.addr != l.addr {
			l.close()
			delete(f.open, at)
		}
	}
	for at := range f.taken {
		if _, ok := want[at]; !ok {
			delete(f.taken, at)
		}
	}
	for at, to := range want {
		if f.open[at] != nil {
			continue
		}
		stop, err := listen(ctx, tasks, at, to.addr)
		if err == nil {
			f.open[at] = &listener{back: to, close: stop}
			delete(f.taken, at)
			continue
		}
		// No such address: this machine has no IPv6 on its loopback interface.
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) || f.taken[at] {
			continue
		}
		f.taken[at] = true
		f.log.Warn("a Service's port does not answer on the loopback address; free the port, it is tried again when a Service changes",
			"service", to.service, "address", at.addr, "network", at.network, "err", err)
	}
}

// wanted lists the fronts that all Services together ask for.
func (f *Forwarder) wanted() map[front]back {
	want := make(map[front]back)
	for _, obj := range f.services.GetStore().List() {
		s, ok := obj.(*corev1.Service)
		if !ok || s.Labels[otherProxyLabel] != "" || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		published := f.published(s)
		for _, p := range s.Spec.Ports {
			network := networkOf(p.Protocol)
			if network == "" {
				continue
			}
			for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
				ip, ok := clusterAddress(s, loopback.Is4())
				if !ok {
					continue
				}
				to := back{addr: netip.AddrPortFrom(ip, uint16(p.Port)), service: s.Namespace + "/" + s.Name}
				if p.NodePort != 0 {
					want[front{network: network, addr: netip.AddrPortFrom(loopback, uint16(p.NodePort))}] = to
				}
				if published {
					want[front{network: network, addr: netip.AddrPortFrom(loopback, uint16(p.Port))}] = to
				}
			}
		}
	}
	return want
}

// published tells whether a Service is served at an address of this node, for the
// node itself too.
func (f *Forwarder) published(s *corev1.Service) bool {
	here := func(text string) bool {
		addr, err := netip.ParseAddr(text)
		return err == nil && slices.Contains(f.addrs, addr)
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || !slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		return here(in.IP) && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP)
	}) {
		return false
	}
	if len(s.Spec.LoadBalancerSourceRanges) == 0 {
		return true
	}
	// As kube-proxy takes it at the node's address.
	return slices.ContainsFunc(s.Spec.LoadBalancerSourceRanges, func(text string) bool {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		return err == nil && (slices.ContainsFunc(f.addrs, p.Contains) || p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	})
}

func networkOf(p corev1.Protocol) string {
	switch p {
	case corev1.ProtocolTCP, "":
		return "tcp"
	case corev1.ProtocolUDP:
		return "udp"
	}
	return "" // SCTP is not forwarded
}

// clusterAddress returns a cluster address of a Service, one of the wanted
// family if there is one.
func clusterAddress(s *corev1.Service, v4 bool) (addr netip.Addr, ok bool) {
	all := s.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{s.Spec.ClusterIP}
	}
	for _, text := range all {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue // "None", or not given yet
		}
		if ip.Is4() == v4 {
			return ip, true
		}
		if !ok {
			addr, ok = ip, true
		}
	}
	return addr, ok
}

// listen opens a front and forwards what comes to the address to. The returned
// function closes it.
func listen(ctx context.Context, tasks *sync.WaitGroup, at front, to netip.AddrPort) (stop func(), err error) {
	address := net.JoinHostPort(at.addr.Addr().String(), strconv.Itoa(int(at.addr.Port())))
	var lc net.ListenConfig
	if at.network == "udp" {
		conn, err := lc.ListenPacket(ctx, "udp", address)
		if err != nil {
			return nil, err
		}
		r := newRelay(conn.(*net.UDPConn), to)
		tasks.Go(func() { r.run(tasks) })
		return r.close, nil
	}
	// Multipath TCP, Go's default for listeners, would keep the kernel from
	// splicing.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tasks.Go(func() { accept(ctx, tasks, l, to) })
	return func() { _ = l.Close() }, nil
}
