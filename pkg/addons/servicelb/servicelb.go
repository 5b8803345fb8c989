// Package servicelb gives Services of type LoadBalancer addresses, with no pods and
// no program outside of the cluster.
//
// What is published are the addresses of the cluster's nodes, in each Service's
// status. kube-proxy on every node already leads packets for published addresses to
// the Service's endpoints, and keeps out those that loadBalancerSourceRanges do not
// let in. So all that is left to do is to decide who gets which address: one
// controller on the server, see [Controller]. What only a node itself knows, its
// [Agent] tells.
//
// With a pool of further addresses, each Service gets one of its own, and one node
// at a time answers for it on the local network, by ARP or neighbour discovery.
package servicelb

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/knarr-dev/knarr/pkg/component"
)

const (
	// Class is the loadBalancerClass of Services that want this package and no
	// other. Services without a class get it too.
	Class = "knarr.dev/servicelb"

	group = "svccontroller.knarr.dev/"
	// EnableLabel with the value "true" restricts load balancing to the nodes that
	// have it, as soon as one does.
	EnableLabel = group + "enablelb"
	// PoolLabel on a Service restricts it to the nodes with the same value.
	PoolLabel = group + "lbpool"
	// TakenAnnotation on a Node lists the ports, as 22/TCP,53/UDP, that Services ask
	// for and that something on the machine listens on. The node's Agent keeps it.
	TakenAnnotation = group + "taken-ports"
	// AnnouncerAnnotation on a Service names the node that answers for its address
	// on the local network. Only addresses of the pool need that.
	AnnouncerAnnotation = group + "announced-by"

	fieldManager = "knarr-servicelb"

	// The reasons of events.
	reasonPort = "PortConflict"
	reasonNode = "NoNode"
	reasonPool = "PoolExhausted"

	// lookAgain is how often the ports that the machine listens on are looked at
	// while there are Services that want some: nobody tells when they change.
	lookAgain              = 2 * time.Minute
	firstRetry, longestTry = time.Second, time.Minute
)

// Port is one that Services can ask for.
type Port struct {
	Protocol corev1.Protocol
	Number   int32
}

// String writes 22/TCP.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Config is what a Controller is told.
type Config struct {
	// Client is called once the components of Needs are ready. It must be allowed to
	// read Services, Nodes and EndpointSlices, to change Services and their status,
	// and to write events.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	// Reserved are ports that no Service gets on a node, and whose they are.
	Reserved map[Port]string
	// Node is the name of the node in this process, and Taken tells which of some
	// ports something on this machine listens on. Taken is nil where there is no
	// node.
	Node  string
	Taken func([]Port) []Port
	// Pool are addresses to give to Services in place of the nodes' own.
	Pool []netip.Addr
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Controller is the component that decides which addresses Services have. One in
// a cluster may run.
type Controller struct{ cfg Config }

var _ component.Component = (*Controller)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Controller{cfg: cfg}
}

// Name implements component.Component.
func (c *Controller) Name() string { return "servicelb" }

// Needs implements component.Component.
func (c *Controller) Needs() []string { return c.cfg.Needs }

// Run implements component.Component. It is ready when the Services that exist
// have their addresses.
func (c *Controller) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := c.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client of the service load balancer: %w", err)
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events(metav1.NamespaceAll)})
	return newRun(c.cfg, client, events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "servicelb"})).run(ctx, ready)
}

// run is a Controller at work.
type run struct {
	cfg      Config
	client   kubernetes.Interface
	events   record.EventRecorder
	services cache.SharedIndexInformer
	nodes    cache.SharedIndexInformer
	// slices are followed only once a Service wants them; nil until then.
	slices cache.SharedIndexInformer
	// changed holds one if there is something to look at.
	changed chan struct{}
	// told is the last complaint about each Service.
	told map[types.UID]string
}

// byService indexes EndpointSlices.
const byService = "service"

func newRun(cfg Config, client kubernetes.Interface, events record.EventRecorder) *run {
	r := &run{
		cfg: cfg, client: client, events: events, changed: make(chan struct{}, 1), told: map[types.UID]string{},
		services: servicesOf(client),
		nodes:    coreinformers.NewNodeInformer(client, 0, nil),
	}
	_ = r.nodes.SetTransform(trimNode) // fails only once it runs
	return r
}

// servicesOf follows the Services of type LoadBalancer. One that gets another type
// leaves the list, and the API server clears its status.
func servicesOf(client kubernetes.Interface) cache.SharedIndexInformer {
	in := coreinformers.NewFilteredServiceInformer(client, metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.type", string(corev1.ServiceTypeLoadBalancer)).String()
	})
	_ = in.SetTransform(trimService) // fails only once it runs
	return in
}

// note has the loop look at everything once more.
func (r *run) note() {
	select {
	case r.changed <- struct{}{}:
	default: // a look that comes later sees this change too
	}
}

// follow has changes of what an informer keeps noted.
func follow(in cache.SharedIndexInformer, note func()) (cache.DoneChecker, error) {
	h, err := in.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { note() },
		UpdateFunc: func(old, now any) {
			if !same(old, now) {
				note()
			}
		},
		DeleteFunc: func(any) { note() },
	})
	if err != nil {
		return nil, fmt.Errorf("watch for the service load balancer: %w", err)
	}
	return h.HasSyncedChecker(), nil
}

// same tells whether two versions differ in nothing that is read here, such as a
// Node's heartbeats.
func same(old, now any) bool {
	b, ok := now.(metav1.ObjectMetaAccessor)
	if !ok {
		return false
	}
	switch old := old.(type) {
	case *corev1.Node:
		x := *old
		x.ResourceVersion = b.GetObjectMeta().GetResourceVersion()
		return equality.Semantic.DeepEqual(&x, now)
	case *discoveryv1.EndpointSlice:
		x := *old
		x.ResourceVersion = b.GetObjectMeta().GetResourceVersion()
		return equality.Semantic.DeepEqual(&x, now)
	}
	return false
}

func (r *run) run(ctx context.Context, ready chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	var synced []cache.DoneChecker
	for _, in := range []cache.SharedIndexInformer{r.services, r.nodes} {
		s, err := follow(in, r.note)
		if err != nil {
			return err
		}
		synced = append(synced, s)
		tasks.Go(func() { in.RunWithContext(ctx) })
	}
	if !cache.WaitFor(ctx, "", synced...) || ctx.Err() != nil {
		return nil
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := firstRetry; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-timer.C:
		}
		if err := r.watchSlices(ctx, &tasks); err != nil {
			return err
		}
		again, err := r.settle(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.cfg.Log.Warn("give Services their addresses; it is tried again", "in", pause, "err", err)
			timer.Reset(pause)
			pause = min(2*pause, longestTry)
			continue
		case again && r.cfg.Taken != nil:
			timer.Reset(lookAgain)
		default:
			timer.Stop()
		}
		pause = firstRetry
		if ready != nil {
			close(ready)
			ready = nil
		}
	}
}

// watchSlices follows all EndpointSlices from the moment that a Service needs to
// know where its endpoints are.
func (r *run) watchSlices(ctx context.Context, tasks *sync.WaitGroup) error {
	if r.slices != nil {
		return nil
	}
	needed := false
	for _, s := range r.ours() {
		needed = needed || s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	}
	if !needed {
		return nil
	}
	in := discoveryinformers.NewFilteredEndpointSliceInformer(r.client, metav1.NamespaceAll, 0, cache.Indexers{byService: func(obj any) ([]string, error) {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			return nil, nil
		}
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
	}}, func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName })
	_ = in.SetTransform(trimSlice) // fails only once it runs
	synced, err := follow(in, r.note)
	if err != nil {
		return err
	}
	tasks.Go(func() { in.RunWithContext(ctx) })
	if cache.WaitFor(ctx, "", synced) {
		r.slices = in
	}
	return nil
}

// ours are the Services that get their addresses here.
func (r *run) ours() []*corev1.Service {
	var list []*corev1.Service
	for _, obj := range r.services.GetStore().List() {
		if s, ok := obj.(*corev1.Service); ok && Wanted(s) {
			list = append(list, s)
		}
	}
	return list
}

// Wanted tells whether a Service gets its addresses here.
func Wanted(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == Class)
}

// settle publishes what the world as it is asks for. again tells whether the
// machine's own ports matter, which nobody tells the changes of.
func (r *run) settle(ctx context.Context) (again bool, err error) {
	w := world{services: r.ours(), reserved: r.cfg.Reserved, pool: r.cfg.Pool, taken: map[string]map[Port]bool{}}
	for _, obj := range r.nodes.GetStore().List() {
		if n, ok := obj.(*corev1.Node); ok {
			w.nodes = append(w.nodes, n)
			w.taken[n.Name] = parsePorts(n.Annotations[TakenAnnotation])
		}
	}
	if r.cfg.Taken != nil && len(w.services) > 0 {
		w.taken[r.cfg.Node] = setOf(r.cfg.Taken(asked(w.services)))
	}
	w.local = r.nodesOf
	decided := w.assign()
	var failed error
	seen := map[types.UID]string{}
	for i, s := range w.services {
		d := decided[i]
		if err := r.publish(ctx, s, d); err != nil && !apierrors.IsNotFound(err) {
			failed = err
			continue
		}
		seen[s.UID] = d.complaint
		if d.complaint != "" && r.told[s.UID] != d.complaint {
			r.events.Event(s, corev1.EventTypeWarning, d.reason, d.complaint)
		}
	}
	r.told = seen
	return len(w.services) > 0, failed
}

// nodesOf are the nodes with ready endpoints of a Service.
func (r *run) nodesOf(s *corev1.Service) map[string]bool {
	names := map[string]bool{}
	if r.slices == nil {
		return names
	}
	found, err := r.slices.GetIndexer().ByIndex(byService, s.Namespace+"/"+s.Name)
	if err != nil {
		return names // there is no such index only if this file is wrong
	}
	for _, obj := range found {
		slice, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				names[*e.NodeName] = true
			}
		}
	}
	return names
}

// publish writes what differs. The two parts of a Service take a request each.
func (r *run) publish(ctx context.Context, s *corev1.Service, d decision) error {
	if s.Annotations[AnnouncerAnnotation] != d.announcer {
		value := any(d.announcer)
		if d.announcer == "" {
			value = nil
		}
		if err := r.patch(ctx, s, "", map[string]any{"metadata": map[string]any{"annotations": map[string]any{AnnouncerAnnotation: value}}}); err != nil {
			return fmt.Errorf("tell who announces Service %s/%s: %w", s.Namespace, s.Name, err)
		}
	}
	if equality.Semantic.DeepEqual(s.Status.LoadBalancer.Ingress, d.ingress) {
		return nil
	}
	if err := r.patch(ctx, s, "status", map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": d.ingress}}}); err != nil {
		return fmt.Errorf("publish the addresses of Service %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

func (r *run) patch(ctx context.Context, s *corev1.Service, subresource string, change map[string]any) error {
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	var sub []string
	if subresource != "" {
		sub = append(sub, subresource)
	}
	_, err = r.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, sub...)
	return err
}
