package network

import (
	"cmp"
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// watchNodes keeps a store of the node with the name, or of all with an empty
// name, until ctx ends. Changed is called after each change, old is nil for a
// new node and now for one that went.
func watchNodes(ctx context.Context, client kubernetes.Interface, name string, changed func(old, now *corev1.Node)) cache.Store {
	nodes := client.CoreV1().Nodes()
	only := func(o *metav1.ListOptions) {
		if name != "" {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			only(&o)
			return nodes.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			only(&o)
			return nodes.Watch(ctx, o)
		},
	}
	tell := func(old, now any) {
		o, _ := old.(*corev1.Node)
		n, _ := now.(*corev1.Node)
		// Not every API server filters what it was asked to.
		if node := cmp.Or(n, o); node != nil && (name == "" || node.Name == name) {
			changed(o, n)
		}
	}
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(lw, client),
		ObjectType:    &corev1.Node{},
		Transform:     trim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(now any) { tell(nil, now) },
			UpdateFunc: tell,
			DeleteFunc: func(old any) {
				if gone, ok := old.(cache.DeletedFinalStateUnknown); ok {
					old = gone.Obj
				}
				tell(old, nil)
			},
		},
	})
	go controller.RunWithContext(ctx)
	return store
}

// trim drops what nothing here reads; a node's list of images is long.
func trim(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: n.Annotations,
		},
		Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
	}, nil
}

// podSubnet is the range that the cluster has given the node's pods, of the
// family asked for; invalid if there is none yet.
func podSubnet(n *corev1.Node, v6 bool) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is6() == v6 {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}
