package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"sync"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// The annotations of a Node by which flannel's daemons know each other, ours
// and upstream's alike.
const (
	annotationManaged  = "flannel.alpha.coreos.com/kube-subnet-manager"
	annotationType     = "flannel.alpha.coreos.com/backend-type"
	annotationData     = "flannel.alpha.coreos.com/backend-data"
	annotationDataV6   = "flannel.alpha.coreos.com/backend-v6-data"
	annotationIP       = "flannel.alpha.coreos.com/public-ip"
	annotationIPv6     = "flannel.alpha.coreos.com/public-ipv6"
	annotationSetIP    = "flannel.alpha.coreos.com/public-ip-overwrite"
	annotationSetIPv6  = "flannel.alpha.coreos.com/public-ipv6-overwrite"
	annotationNodeIP   = "flannel.alpha.coreos.com/node-public-ip"
	annotationNodeIPv6 = "flannel.alpha.coreos.com/node-public-ipv6"
)

// What ends flannel, so that a new start makes all of it again.
var (
	errLinkLost  = errors.New("flannel's vxlan link was deleted")
	errLeaseLost = errors.New("the node's lease was changed or the Node was made anew")
)

// leases lets flannel's backends read and write the leases that Nodes carry.
// Upstream's own asks the API server once in one to three seconds.
type leases struct {
	client   kubernetes.Interface
	nodeName string
	config   *subnet.Config
	// lost is called with one of the errors above.
	lost func(error)

	mu       sync.Mutex
	own      *corev1.Node
	acquired *lease.Lease           // by this process; nil before
	seen     bool                   // acquired came back from the API server
	all      map[string]lease.Lease // by the node's name
	owned    chan struct{}          // closed once the own Node has a subnet
	// changed has a value when all has changed since it was last looked at.
	changed chan struct{}
}

var _ subnet.Manager = (*leases)(nil)

func newLeases(client kubernetes.Interface, nodeName string, config *subnet.Config, lost func(error)) *leases {
	return &leases{
		client: client, nodeName: nodeName, config: config, lost: lost,
		all: make(map[string]lease.Lease), owned: make(chan struct{}), changed: make(chan struct{}, 1),
	}
}

// see takes note of a Node that came, changed or went.
func (l *leases) see(old, now *corev1.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now == nil {
		l.set(old.Name, nil)
		return
	}
	if now.Name == l.nodeName {
		l.own = now
		if podSubnet(now, l.config.EnableIPv6).IsValid() {
			closeOnce(l.owned)
		}
		l.compare(l.leaseOf(now))
	}
	l.set(now.Name, l.leaseOf(now))
}

// compare looks whether the own lease is still the one that was acquired. A Node
// from before that may be seen late.
func (l *leases) compare(own *lease.Lease) {
	switch same := reflect.DeepEqual(own, l.acquired); {
	case l.acquired == nil:
	case same:
		l.seen = true
	case l.seen:
		l.lost(errLeaseLost)
	}
}

func (l *leases) set(name string, to *lease.Lease) {
	old, known := l.all[name]
	switch {
	case to == nil && !known, to != nil && known && reflect.DeepEqual(old, *to):
		return
	case to == nil:
		delete(l.all, name)
	default:
		l.all[name] = *to
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// leaseOf reads a Node's lease; nil if it has none.
func (l *leases) leaseOf(n *corev1.Node) *lease.Lease {
	prefix := podSubnet(n, l.config.EnableIPv6)
	if n.Annotations[annotationManaged] != "true" || !prefix.IsValid() {
		return nil
	}
	a := &lease.Lease{
		EnableIPv4: l.config.EnableIPv4, EnableIPv6: l.config.EnableIPv6,
		Attrs: lease.LeaseAttrs{BackendType: n.Annotations[annotationType]},
	}
	var err error
	if l.config.EnableIPv6 {
		a.IPv6Subnet = toIP6Net(prefix)
		a.Attrs.BackendV6Data = json.RawMessage(n.Annotations[annotationDataV6])
		a.Attrs.PublicIPv6, err = ip.ParseIP6(n.Annotations[annotationIPv6])
	} else {
		a.Subnet = toIP4Net(prefix)
		a.Attrs.BackendData = json.RawMessage(n.Annotations[annotationData])
		a.Attrs.PublicIP, err = ip.ParseIP4(n.Annotations[annotationIP])
	}
	if err != nil {
		return nil
	}
	return a
}

// AcquireLease writes the attributes to the own Node, if they are not there.
func (l *leases) AcquireLease(ctx context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	select {
	case <-l.owned:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	own := l.own.DeepCopy()
	l.mu.Unlock()

	want := map[string]string{annotationManaged: "true", annotationType: attrs.BackendType}
	if l.config.EnableIPv6 {
		want[annotationDataV6] = rawText(attrs.BackendV6Data)
		want[annotationIPv6] = orText(own.Annotations[annotationSetIPv6], attrs.PublicIPv6.String())
	} else {
		want[annotationData] = rawText(attrs.BackendData)
		want[annotationIP] = orText(own.Annotations[annotationSetIP], attrs.PublicIP.String())
	}
	maps.DeleteFunc(want, func(key, value string) bool { return own.Annotations[key] == value })
	if len(want) > 0 {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": want}})
		if err != nil {
			return nil, fmt.Errorf("annotate node %s for flannel: %w", l.nodeName, err)
		}
		own, err = l.client.CoreV1().Nodes().Patch(ctx, l.nodeName, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil {
			return nil, fmt.Errorf("annotate node %s for flannel: %w", l.nodeName, err)
		}
	}
	a := l.leaseOf(own)
	if a == nil {
		return nil, fmt.Errorf("node %s has no usable lease after it was annotated: see its annotations flannel.alpha.coreos.com/*", l.nodeName)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acquired = a
	l.compare(l.leaseOf(l.own))
	return a, nil
}

// WatchLeases tells of every node's lease, and then of every change, until ctx
// ends. That is no error, or flannel would log one at each stop.
func (l *leases) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	told := make(map[string]lease.Lease)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
		}
		l.mu.Lock()
		now := maps.Clone(l.all)
		l.mu.Unlock()
		if events := difference(told, now); len(events) > 0 {
			select {
			case receiver <- []lease.LeaseWatchResult{{Events: events}}:
			case <-ctx.Done():
				return nil
			}
		}
		told = now
	}
}

// difference is what happened between two states. What goes comes first: its
// subnet may be another node's by now.
func difference(old, now map[string]lease.Lease) []lease.Event {
	var gone, come []lease.Event
	for name, o := range old {
		n, still := now[name]
		if !still || !n.Subnet.Equal(o.Subnet) || !n.IPv6Subnet.Equal(o.IPv6Subnet) {
			gone = append(gone, lease.Event{Type: lease.EventRemoved, Lease: o})
		}
	}
	for name, n := range now {
		if o, known := old[name]; !known || !reflect.DeepEqual(o, n) {
			come = append(come, lease.Event{Type: lease.EventAdded, Lease: n})
		}
	}
	return append(gone, come...)
}

// GetStoredMacAddresses keeps the address of the vxlan link through a reboot,
// so that other nodes' entries stay right.
func (l *leases) GetStoredMacAddresses(context.Context) (v4, v6 string) {
	return l.storedMAC(annotationData), l.storedMAC(annotationDataV6)
}

func (l *leases) storedMAC(annotation string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var data struct{ VtepMAC string }
	if l.own == nil || json.Unmarshal([]byte(l.own.Annotations[annotation]), &data) != nil {
		return ""
	}
	return data.VtepMAC
}

// GetStoredPublicIP returns the addresses that the user wants to be used.
func (l *leases) GetStoredPublicIP(context.Context) (v4, v6 string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own == nil {
		return "", ""
	}
	return l.own.Annotations[annotationNodeIP], l.own.Annotations[annotationNodeIPv6]
}

// GetNetworkConfig is called only by the vxlan backend, which asks when its link
// has gone and it is about to make a new one. As of v0.28.4 it then crashes the
// process when the cluster has one address family, and restores neither routes
// nor neighbours. So it gets an error, on which it does nothing, and flannel is
// started anew.
func (l *leases) GetNetworkConfig(context.Context) (*subnet.Config, error) {
	l.lost(errLinkLost)
	return nil, errLinkLost
}

// Name implements subnet.Manager.
func (l *leases) Name() string { return "nodes" }

// What follows is for other stores than Kubernetes; no backend of ours calls it.

var errUnused = errors.New("leases on Nodes do not expire and are not watched one by one")

// HandleSubnetFile implements subnet.Manager.
func (l *leases) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return nil
}

// RenewLease implements subnet.Manager.
func (l *leases) RenewLease(context.Context, *lease.Lease) error { return errUnused }

// WatchLease implements subnet.Manager.
func (l *leases) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errUnused
}

// CompleteLease implements subnet.Manager.
func (l *leases) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }

func toIP4Net(p netip.Prefix) ip.IP4Net {
	return ip.IP4Net{IP: ip.FromIP(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}

func toIP6Net(p netip.Prefix) ip.IP6Net {
	return ip.IP6Net{IP: ip.FromIP6(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}

// rawText is the JSON text; null for none, as upstream writes it.
func rawText(m json.RawMessage) string {
	if m == nil {
		return "null"
	}
	return string(m)
}

func orText(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// closeOnce closes a channel that may be closed; the caller holds a lock.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
