package dns

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1client "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// The indexes that names and addresses are looked up by.
const (
	byName = "name"
	byIP   = "ip"
)

// livingPods leaves out those whose address may be another's by now.
const livingPods = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"

// cluster is what DNS knows of the cluster: the plugin's own small objects,
// kept by informers.
//
// It stands where the plugin would put its own controller. That one can only
// be asked whether it has synchronised; this one closes a channel.
type cluster struct {
	services, endpoints, namespaces cache.Indexer
	pods                            cache.Indexer // nil when pods are not verified
	informers                       []cache.Controller
	core                            corev1client.CoreV1Interface

	synced  chan struct{} // closed once all informers have the first list
	changed atomic.Int64  // Unix seconds of the last change; the zone's serial
}

// newCluster connects to nothing yet.
func newCluster(conn *rest.Config, withPods bool) (*cluster, error) {
	conn = rest.CopyConfig(conn)
	conn.ContentType = runtime.ContentTypeProtobuf
	conn.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	conn.UserAgent = "knarr-dns"
	client, err := rest.HTTPClientFor(conn)
	if err != nil {
		return nil, fmt.Errorf("connect cluster DNS to the API server: %w", err)
	}
	core, err := corev1client.NewForConfigAndClient(conn, client)
	if err != nil {
		return nil, fmt.Errorf("connect cluster DNS to the API server: %w", err)
	}
	discovery, err := discoveryv1client.NewForConfigAndClient(conn, client)
	if err != nil {
		return nil, fmt.Errorf("connect cluster DNS to the API server: %w", err)
	}

	c := &cluster{synced: make(chan struct{}), core: core}
	c.services = c.inform(core.RESTClient(), "services", fields.Everything(), &corev1.Service{}, object.ToService, cache.Indexers{
		byName: index(func(s *object.Service) []string { return []string{s.Index} }),
		byIP:   index(func(s *object.Service) []string { return s.ClusterIPs }),
	})
	c.endpoints = c.inform(discovery.RESTClient(), "endpointslices", fields.Everything(), &discoveryv1.EndpointSlice{}, object.EndpointSliceToEndpoints, cache.Indexers{
		byName: index(func(e *object.Endpoints) []string { return []string{e.Index} }),
		byIP:   index(func(e *object.Endpoints) []string { return e.IndexIP }),
	})
	c.namespaces = c.inform(core.RESTClient(), "namespaces", fields.Everything(), &corev1.Namespace{}, object.ToNamespace, nil)
	if withPods {
		c.pods = c.inform(core.RESTClient(), "pods", fields.ParseSelectorOrDie(livingPods), &corev1.Pod{}, object.ToPod, cache.Indexers{
			byIP: index(func(p *object.Pod) []string { return []string{p.PodIP} }),
		})
	}
	return c, nil
}

func (c *cluster) inform(from cache.Getter, resource string, which fields.Selector, kind runtime.Object, convert object.ToFunc, by cache.Indexers) cache.Indexer {
	source := cache.NewListWatchFromClient(from, resource, metav1.NamespaceAll, which)
	touch := func() { c.changed.Store(time.Now().Unix()) }
	on := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { touch() },
		UpdateFunc: func(any, any) { touch() },
		DeleteFunc: func(any) { touch() },
	}
	if by == nil {
		by = cache.Indexers{}
	}
	known, informer := object.NewIndexerInformer(source, kind, on, by, object.DefaultProcessor(convert, nil))
	c.informers = append(c.informers, informer)
	return known
}

// run follows the API server, once it answers, until ctx ends.
func (c *cluster) run(ctx context.Context, answers <-chan struct{}) {
	if answers != nil {
		select {
		case <-ctx.Done():
			return
		case <-answers:
		}
	}
	var wg sync.WaitGroup
	for _, in := range c.informers {
		wg.Go(func() { in.RunWithContext(ctx) })
	}
	wg.Go(func() {
		for _, in := range c.informers {
			select {
			case <-ctx.Done():
				return
			case <-in.HasSyncedChecker().Done():
			}
		}
		close(c.synced)
	})
	wg.Wait()
}

const (
	// askAgain is the pause until it is asked whether a refusal still stands, and
	// askNoMore when that is left to the informers.
	askAgain  = 10 * time.Millisecond
	askNoMore = 5 * time.Second
)

// AwaitAccess returns once DNS may list Services by conn, or there is another answer
// than a refusal. A role that was written a moment ago is not known to all of the API
// server yet, and an informer that is refused waits for a second.
func AwaitAccess(ctx context.Context, conn *rest.Config) error {
	core, err := corev1client.NewForConfig(conn)
	if err != nil {
		return fmt.Errorf("connect cluster DNS to the API server: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askNoMore)
	defer cancel()
	for {
		_, err := core.Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{Limit: 1, ResourceVersion: "0"})
		if !apierrors.IsForbidden(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askAgain):
		}
	}
}

// index makes an index function of one that knows the type.
func index[T any](keys func(T) []string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		t, ok := obj.(T)
		if !ok {
			return nil, fmt.Errorf("index %T: not a %T", obj, t)
		}
		return keys(t), nil
	}
}

// all gives what in has under key, or everything if index is empty.
func all[T any](in cache.Indexer, index, key string) []T {
	if in == nil {
		return nil
	}
	found := in.List
	if index != "" {
		found = func() []any {
			objs, _ := in.ByIndex(index, key) // fails only for an index that does not exist
			return objs
		}
	}
	objs := found()
	out := make([]T, 0, len(objs))
	for _, obj := range objs {
		if t, ok := obj.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// What follows is the interface that the plugin reads.

func (c *cluster) HasSynced() bool {
	select {
	case <-c.synced:
		return true
	default:
		return false
	}
}

func (c *cluster) Modified(kubernetes.ModifiedMode) int64 { return c.changed.Load() }

func (c *cluster) ServiceList() []*object.Service { return all[*object.Service](c.services, "", "") }
func (c *cluster) EndpointsList() []*object.Endpoints {
	return all[*object.Endpoints](c.endpoints, "", "")
}
func (c *cluster) SvcIndex(name string) []*object.Service {
	return all[*object.Service](c.services, byName, name)
}
func (c *cluster) SvcIndexReverse(ip string) []*object.Service {
	return all[*object.Service](c.services, byIP, ip)
}
func (c *cluster) EpIndex(name string) []*object.Endpoints {
	return all[*object.Endpoints](c.endpoints, byName, name)
}
func (c *cluster) EpIndexReverse(ip string) []*object.Endpoints {
	return all[*object.Endpoints](c.endpoints, byIP, ip)
}
func (c *cluster) PodIndex(ip string) []*object.Pod { return all[*object.Pod](c.pods, byIP, ip) }

func (c *cluster) GetNamespaceByName(name string) (*object.Namespace, error) {
	obj, found, err := c.namespaces.GetByKey(name)
	if err != nil {
		return nil, fmt.Errorf("find namespace %s: %w", name, err)
	}
	ns, ok := obj.(*object.Namespace)
	if !found || !ok {
		return nil, fmt.Errorf("namespace %s does not exist", name)
	}
	return ns, nil
}

// Other plugins would ask for these; none of them is in the chain.

func (c *cluster) SvcExtIndexReverse(string) []*object.Service      { return nil }
func (c *cluster) SvcImportIndex(string) []*object.ServiceImport    { return nil }
func (c *cluster) ServiceImportList() []*object.ServiceImport       { return nil }
func (c *cluster) McEpIndex(string) []*object.MultiClusterEndpoints { return nil }
func (c *cluster) GetNodeByName(context.Context, string) (*corev1.Node, error) {
	return nil, errors.New("cluster DNS knows no nodes")
}

// Run and Stop do nothing: the component runs the informers.

func (c *cluster) Run()        {}
func (c *cluster) Stop() error { return nil }
