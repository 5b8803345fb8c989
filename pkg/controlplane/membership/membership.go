// Package membership decides which machines are nodes of the cluster.
//
// It stands where upstream's csrapproving controller would, which approves what
// RBAC allows and forgets it. This one knows: a name belongs to the first machine
// that asks for it with a bootstrap token, until its Node object is deleted. Who
// that is stands in a record, a ConfigMap for each node. The API server compares
// each request of a node with it, since a certificate cannot be called back: a
// deleted node's is refused although it is valid for months.
package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	certificatesinformers "k8s.io/client-go/informers/certificates/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// Config is what Membership needs to know.
type Config struct {
	// Client is called once the components in Needs are ready. It must be allowed
	// to do anything.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	// Certificates is called at any time after a client could have connected.
	Certificates func() Certificates
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Certificates are those of the server.
type Certificates struct {
	// ClientCAs sign, or have signed, nodes' client certificates.
	ClientCAs []*x509.Certificate
	// Serving is what the API server shows.
	Serving *x509.Certificate
	// Own are the client certificates of the server's own node that are valid, the
	// present one last.
	Own []*x509.Certificate
}

// ownNode is the name of the server's own node.
func (c Certificates) ownNode() string {
	if len(c.Own) == 0 {
		return ""
	}
	return nodeOf(c.Own[len(c.Own)-1])
}

// Membership approves and denies the certificates of nodes, keeps the records,
// and lets the API server ask who is a member.
type Membership struct {
	cfg Config
	// synced is closed once roll is set.
	synced chan struct{}
	once   sync.Once
	roll   atomic.Pointer[roll]
	now    atomic.Pointer[controller] // that of the present Run
	// said bounds what strangers can have logged.
	said flowcontrol.PassiveRateLimiter
}

var _ component.Component = (*Membership)(nil)

// New returns the component. Handler and Admit may be used at once; they wait
// until Run has read the records.
func New(cfg Config) *Membership {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Membership{cfg: cfg, synced: make(chan struct{}), said: flowcontrol.NewTokenBucketPassiveRateLimiter(1.0/6, 20)}
}

// Name implements component.Component.
func (m *Membership) Name() string { return "membership" }

// Needs implements component.Component.
func (m *Membership) Needs() []string { return m.cfg.Needs }

// Run implements component.Component. It is ready when the records are known.
func (m *Membership) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := m.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client for the membership of nodes: %w", err)
	}
	c, err := newController(m, client)
	if err != nil {
		return err
	}
	return c.run(ctx, ready)
}

// enqueue has the present controller look at a node.
func (m *Membership) enqueue(node string) {
	if c := m.now.Load(); c != nil {
		c.queue.Add(item{nodeItem, node})
	}
}

// info logs what operators want once, but no more than ten lines a minute of it.
func (m *Membership) info(msg string, args ...any) {
	if m.said.TryAccept() {
		m.cfg.Log.Info(msg, args...)
	}
}

// item is something to look at: a request by its name, or a node by its own.
type item struct {
	kind itemKind
	name string
}

type itemKind int

const (
	requestItem itemKind = iota
	nodeItem
)

const (
	workers = 4
	// The indexes: requests by the node they are for, Nodes by their addresses.
	byNode    = "node"
	byAddress = "address"

	firstRetry   = 50 * time.Millisecond
	longestRetry = time.Minute
)

// errAgain has an item looked at again, which is no failure.
var errAgain = errors.New("look again")

// controller is Membership at work, for one Run.
type controller struct {
	m      *Membership
	client kubernetes.Interface
	queue  workqueue.TypedRateLimitingInterface[item]
	roll   *roll

	requests, records, nodes cache.SharedIndexInformer
	handled                  []cache.DoneChecker

	mu sync.Mutex
	// upon has, by the name of a Node, the requests that wait for another's
	// address to be given back by it.
	upon map[string]map[string]bool
}

func newController(m *Membership, client kubernetes.Interface) (*controller, error) {
	c := &controller{
		m: m, client: client, roll: newRoll(), upon: make(map[string]map[string]bool),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[item](firstRetry, longestRetry)),
		requests: certificatesinformers.NewCertificateSigningRequestInformer(client, 0, cache.Indexers{byNode: func(obj any) ([]string, error) {
			csr, ok := obj.(*certificatesv1.CertificateSigningRequest)
			if !ok {
				return nil, nil
			}
			return []string{claimed(csr)}, nil
		}}),
		records: coreinformers.NewFilteredConfigMapInformer(client, namespace, 0, nil, func(o *metav1.ListOptions) {
			o.LabelSelector = recordLabel
		}),
		nodes: coreinformers.NewNodeInformer(client, 0, cache.Indexers{byAddress: func(obj any) ([]string, error) {
			n, ok := obj.(*corev1.Node)
			if !ok {
				return nil, nil
			}
			return addresses(n), nil
		}}),
	}
	for i, transform := range map[cache.SharedIndexInformer]cache.TransformFunc{c.requests: part.Trim, c.records: part.Trim, c.nodes: slim} {
		if err := i.SetTransform(transform); err != nil {
			return nil, fmt.Errorf("watch nodes and their requests: %w", err)
		}
	}
	for i, h := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.requests: handler[certificatesv1.CertificateSigningRequest]{c.onRequest},
		c.records:  handler[corev1.ConfigMap]{c.onRecord},
		c.nodes:    handler[corev1.Node]{c.onNode},
	} {
		r, err := i.AddEventHandler(h)
		if err != nil {
			return nil, fmt.Errorf("watch nodes and their requests: %w", err)
		}
		c.handled = append(c.handled, r.HasSyncedChecker())
	}
	return c, nil
}

// slim keeps of a Node what is read here.
func slim(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}, nil
}

func (c *controller) run(ctx context.Context, ready chan<- struct{}) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.queue.ShutDown()
	for _, i := range []cache.SharedIndexInformer{c.requests, c.records, c.nodes} {
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	for _, h := range c.handled {
		select {
		case <-h.Done():
		case <-ctx.Done():
			return nil
		}
	}
	c.m.now.Store(c)
	if before := c.m.roll.Swap(c.roll); before != nil {
		before.close() // what is open comes back, and is compared with the new one
	}
	c.m.once.Do(func() { close(c.m.synced) })
	close(ready)
	for range workers {
		wg.Go(func() {
			for {
				i, quit := c.queue.Get()
				if quit {
					return
				}
				c.process(ctx, i)
			}
		})
	}
	<-ctx.Done()
	return nil
}

func (c *controller) process(ctx context.Context, i item) {
	defer c.queue.Done(i)
	look := c.decide
	if i.kind == nodeItem {
		look = c.reconcile
	}
	err := look(ctx, i.name)
	switch {
	case err == nil || ctx.Err() != nil:
		c.queue.Forget(i)
		return
	// Somebody was quicker, or our own write has not come back: both will, and
	// this is for the case that we don't hear of it.
	case errors.Is(err, errAgain), apierrors.IsConflict(err):
	default:
		c.m.info("look after the membership of nodes; it is tried again", "item", i.name, "error", err)
	}
	c.queue.AddRateLimited(i)
}

// handler gives an informer's events to one function: old is nil for what is
// new, and now for what is gone.
type handler[T any] struct {
	on func(old, now *T)
}

// OnAdd implements cache.ResourceEventHandler.
func (h handler[T]) OnAdd(obj any, _ bool) {
	if o, ok := obj.(*T); ok {
		h.on(nil, o)
	}
}

// OnUpdate implements cache.ResourceEventHandler.
func (h handler[T]) OnUpdate(old, obj any) {
	o, ok1 := old.(*T)
	n, ok2 := obj.(*T)
	if ok1 && ok2 {
		h.on(o, n)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (h handler[T]) OnDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if o, ok := obj.(*T); ok {
		h.on(o, nil)
	}
}
