package metrics

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// podLister answers from the API server's own cache of pods, when it is asked.
// A cache here would hold all pods once more, for questions that come each 15
// seconds at most or never.
type podLister struct {
	client    metadata.Interface
	namespace string // empty for all
}

var _ cache.GenericLister = podLister{}

// ByNamespace implements cache.GenericLister.
func (l podLister) ByNamespace(namespace string) cache.GenericNamespaceLister {
	return podLister{l.client, namespace}
}

// List implements cache.GenericLister.
func (l podLister) List(selector labels.Selector) ([]runtime.Object, error) {
	list, err := l.pods().List(context.TODO(), metav1.ListOptions{
		LabelSelector: selector.String(),
		FieldSelector: "status.phase=" + string(corev1.PodRunning),
		// Any version that the cache has will do.
		ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	objects := make([]runtime.Object, len(list.Items))
	for i := range list.Items {
		objects[i] = &list.Items[i]
	}
	return objects, nil
}

// Get implements cache.GenericLister. An error tells of a pod that there is
// none of as the API server does.
func (l podLister) Get(name string) (runtime.Object, error) {
	return l.pods().Get(context.TODO(), name, metav1.GetOptions{ResourceVersion: "0"})
}

func (l podLister) pods() metadata.ResourceInterface {
	r := l.client.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	if l.namespace == "" {
		return r
	}
	return r.Namespace(l.namespace)
}
