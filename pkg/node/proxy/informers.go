package proxy

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/apis"

	"github.com/knarr-dev/knarr/pkg/part"
)

// informers follow what the proxy needs to know. They never resync: a watch
// misses nothing, and upstream's rule writer would find nothing to do.
type informers struct {
	services, endpoints, serviceCIDRs, node cache.SharedIndexInformer
}

// newInformers leaves out what upstream does: headless Services and those that
// another proxy claims by a label.
func newInformers(client kubernetes.Interface, nodeName string) informers {
	in := informers{
		services: coreinformers.NewFilteredServiceInformer(client, metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + apis.LabelServiceProxyName
			o.FieldSelector = fields.OneTermNotEqualSelector("spec.clusterIP", v1.ClusterIPNone).String()
		}),
		endpoints: discoveryinformers.NewFilteredEndpointSliceInformer(client, metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + v1.IsHeadlessService
		}),
		serviceCIDRs: networkinginformers.NewServiceCIDRInformer(client, 0, nil),
		node: coreinformers.NewFilteredNodeInformer(client, 0, nil, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName).String()
		}),
	}
	for _, i := range in.all() {
		_ = i.SetTransform(part.Trim) // fails only once it runs
	}
	return in
}

func (in informers) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{in.services, in.endpoints, in.serviceCIDRs, in.node}
}

// handler gives an informer's events to one function: old is nil for what is
// new, and new is nil for what is gone.
type handler[T any] struct {
	update func(old, new *T)
}

// OnAdd implements cache.ResourceEventHandler.
func (h handler[T]) OnAdd(obj any, _ bool) {
	if o, ok := obj.(*T); ok {
		h.update(nil, o)
	}
}

// OnUpdate implements cache.ResourceEventHandler.
func (h handler[T]) OnUpdate(old, obj any) {
	o, ok1 := old.(*T)
	n, ok2 := obj.(*T)
	if ok1 && ok2 {
		h.update(o, n)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (h handler[T]) OnDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if o, ok := obj.(*T); ok {
		h.update(o, nil)
	}
}

func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}
