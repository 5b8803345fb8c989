package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	// manager owns the fields that manifests set.
	manager = "knarr-deploy"
	// crdPatience is how long a type may take to be served.
	crdPatience = 30 * time.Second
)

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// applier speaks to the API about objects of any kind. What it knows of kinds
// is fetched when it is needed, and goes with it.
type applier struct {
	client dynamic.Interface
	kinds  *restmapper.DeferredDiscoveryRESTMapper
	// reset: the kinds were asked for anew already, for the source at hand.
	reset bool
}

func newApplier(cfg *rest.Config) (*applier, error) {
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create client of discovery: %w", err)
	}
	return &applier{client: client, kinds: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))}, nil
}

// resource is where objects of a kind are. It puts right the namespace: default
// where one is missing, none where the kind has none.
func (a *applier) resource(gvk schema.GroupVersionKind, namespace *string) (dynamic.ResourceInterface, error) {
	m, err := a.kinds.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) && !a.reset {
		a.reset = true
		a.kinds.Reset()
		m, err = a.kinds.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return nil, err
	}
	r := a.client.Resource(m.Resource)
	if m.Scope.Name() != meta.RESTScopeNameNamespace {
		*namespace = ""
		return r, nil
	}
	if *namespace == "" {
		*namespace = metav1.NamespaceDefault
	}
	return r.Namespace(*namespace), nil
}

// resolve is how an object is told by its whole name.
func (a *applier) resolve(o object) (object, error) {
	_, err := a.resource(o.gvk(), &o.Namespace)
	return o, err
}

// apply writes one object of a source. It sets the object's namespace where that
// is missing.
func (a *applier) apply(ctx context.Context, path string, o *unstructured.Unstructured) error {
	namespace := o.GetNamespace()
	r, err := a.resource(o.GroupVersionKind(), &namespace)
	if err != nil {
		return fmt.Errorf("apply %s: %w", objectOf(o), err)
	}
	o.SetNamespace(namespace)
	o = o.DeepCopy()
	annotations := o.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[sourceAnnotation] = path
	o.SetAnnotations(annotations)
	// What `kubectl get -o yaml` shows, users save.
	unstructured.RemoveNestedField(o.Object, "metadata", "managedFields")
	unstructured.RemoveNestedField(o.Object, "metadata", "resourceVersion")
	unstructured.RemoveNestedField(o.Object, "metadata", "uid")
	text, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode %s: %w", objectOf(o), err)
	}
	_, err = r.Patch(ctx, o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: manager, Force: new(true)})
	if err != nil {
		return fmt.Errorf("apply %s: %w", objectOf(o), err)
	}
	return nil
}

// applyAll writes the objects of a source, what others need first. It goes on
// after errors, and returns them all.
func (a *applier) applyAll(ctx context.Context, path string, objects []*unstructured.Unstructured) error {
	a.reset = false
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(x, y *unstructured.Unstructured) int { return rank(x.GetKind()) - rank(y.GetKind()) })
	var errs []error
	var crds []string
	for _, o := range objects {
		if len(crds) > 0 && o.GetKind() != crdKind {
			errs = append(errs, a.awaitCRDs(ctx, crds))
			crds = nil
		}
		if err := a.apply(ctx, path, o); err != nil {
			errs = append(errs, err)
		} else if o.GetKind() == crdKind {
			crds = append(crds, o.GetName())
		}
	}
	errs = append(errs, a.awaitCRDs(ctx, crds))
	return errors.Join(errs...)
}

// awaitCRDs waits until types are served.
func (a *applier) awaitCRDs(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, crdPatience)
	defer cancel()
	var errs []error
	for _, name := range names {
		if err := a.awaitCRD(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("wait for type %s: %w", name, err))
		}
	}
	a.kinds.Reset()
	return errors.Join(errs...)
}

func (a *applier) awaitCRD(ctx context.Context, name string) error {
	r := a.client.Resource(crdResource)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	list, err := r.List(ctx, metav1.ListOptions{FieldSelector: only})
	if err != nil {
		return err
	}
	if len(list.Items) == 1 && established(&list.Items[0]) {
		return nil
	}
	w, err := r.Watch(ctx, metav1.ListOptions{FieldSelector: only, ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.New("the API server does not serve it yet")
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return errors.New("the API server ended the watch")
			}
			if o, is := e.Object.(*unstructured.Unstructured); is && established(o) {
				return nil
			}
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Established" && m["status"] == "True"
	})
}

// stale are the old objects that are not among the new ones.
func (a *applier) stale(old []object, objects []*unstructured.Unstructured) ([]object, error) {
	a.reset = false
	var gone []object
	for _, o := range old {
		o, err := a.resolve(o)
		if meta.IsNoMatchError(err) {
			continue // its type went, and it with it
		}
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", o, err)
		}
		if !slices.ContainsFunc(objects, func(n *unstructured.Unstructured) bool { return objectOf(n).same(o) }) {
			gone = append(gone, o)
		}
	}
	return gone, nil
}

// prune deletes an object that a source made and no longer has. One that has
// come to belong to another source stays.
func (a *applier) prune(ctx context.Context, path string, o object) error {
	namespace := o.Namespace
	r, err := a.resource(o.gvk(), &namespace)
	if meta.IsNoMatchError(err) {
		return nil // its type went, and it with it
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", o, err)
	}
	now, err := r.Get(ctx, o.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", o, err)
	}
	if now.GetAnnotations()[sourceAnnotation] != path {
		return nil
	}
	err = r.Delete(ctx, o.Name, metav1.DeleteOptions{
		PropagationPolicy: new(metav1.DeletePropagationBackground), Preconditions: metav1.NewUIDPreconditions(string(now.GetUID())),
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", o, err)
	}
	return nil
}

// pruneAll deletes objects, what others need last.
func (a *applier) pruneAll(ctx context.Context, path string, objects []object) error {
	a.reset = false
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(x, y object) int { return rank(y.Kind) - rank(x.Kind) })
	var errs []error
	for _, o := range objects {
		errs = append(errs, a.prune(ctx, path, o))
	}
	return errors.Join(errs...)
}

const crdKind = "CustomResourceDefinition"

// rank orders kinds by who needs whom: lower ones come first. Webhooks come last,
// since they judge what comes after them, by pods that are not there yet.
func rank(kind string) int {
	order := [][]string{
		{crdKind, "Namespace", "PriorityClass", "RuntimeClass"},
		{"ServiceAccount", "Secret", "ConfigMap", "StorageClass", "ResourceQuota", "LimitRange", "NetworkPolicy", "ClusterRole", "Role"},
		{"PersistentVolume", "PersistentVolumeClaim", "ClusterRoleBinding", "RoleBinding", "Service"},
	}
	if kind == crdKind {
		return -1 // types are waited for before all else
	}
	for i, kinds := range order {
		if slices.Contains(kinds, kind) {
			return i
		}
	}
	if slices.Contains([]string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "APIService"}, kind) {
		return len(order) + 1
	}
	return len(order)
}
