package knarrtest

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"

	"github.com/knarr-dev/knarr/pkg/manifest"
)

const fieldManager = "knarrtest"

// manifests are what is installed before a test begins.
type manifests struct {
	crds, webhooks, objects []*unstructured.Unstructured
}

// read reads all files, so that a mistake in one is told before anything starts.
func (o options) read() (m manifests, err error) {
	for _, part := range []struct {
		paths []string
		kinds []string // nil for all
		to    *[]*unstructured.Unstructured
	}{
		{o.crds, []string{"CustomResourceDefinition"}, &m.crds},
		{o.webhooks, []string{"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}, &m.webhooks},
		{o.objects, nil, &m.objects},
	} {
		for _, path := range part.paths {
			all, err := readManifests(path)
			if err != nil {
				return m, err
			}
			if part.kinds != nil {
				all = slices.DeleteFunc(all, func(u *unstructured.Unstructured) bool { return !slices.Contains(part.kinds, u.GetKind()) })
				if len(all) == 0 {
					return m, fmt.Errorf("read manifests: %s has no %s", path, part.kinds[0])
				}
			}
			*part.to = append(*part.to, all...)
		}
	}
	return m, nil
}

// readManifests reads a file, or the files of a folder in the order of their names.
func readManifests(path string) ([]*unstructured.Unstructured, error) {
	files := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if info.IsDir() {
		files = nil
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		for _, e := range entries {
			if isManifest(e) {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	var all []*unstructured.Unstructured
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		objects, err := manifest.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %s: %w", file, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

func isManifest(e fs.DirEntry) bool {
	return !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name()))
}

// install has the API server know all of m, and serve what is of it.
func (c *ControlPlane) install(ctx context.Context, m manifests) error {
	if len(m.crds)+len(m.webhooks)+len(m.objects) == 0 {
		return nil
	}
	client, err := c.Cluster.Client()
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		return fmt.Errorf("install manifests: %w", err)
	}
	if len(m.webhooks) > 0 || slices.ContainsFunc(m.crds, convertsByWebhook) {
		if c.Webhook, err = newWebhook(); err != nil {
			return err
		}
	}
	for _, crd := range m.crds {
		if err := c.Webhook.redirect(crd); err != nil {
			return err
		}
	}
	if err := installCRDs(ctx, client, dyn, m.crds); err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	for _, u := range m.objects {
		if err := apply(ctx, dyn, mapper, u); err != nil {
			return err
		}
	}
	// Nobody answers them yet: they come last.
	for _, u := range m.webhooks {
		if err := c.Webhook.redirect(u); err != nil {
			return err
		}
		if err := apply(ctx, dyn, mapper, u); err != nil {
			return err
		}
	}
	return nil
}

// apply writes an object, whatever it was before.
func apply(ctx context.Context, dyn dynamic.Interface, mapper *restmapper.DeferredDiscoveryRESTMapper, u *unstructured.Unstructured) error {
	kind := u.GroupVersionKind()
	m, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return fmt.Errorf("install %s %s: %w", kind.Kind, u.GetName(), err)
	}
	var to dynamic.ResourceInterface = dyn.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		ns := u.GetNamespace()
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
		to = dyn.Resource(m.Resource).Namespace(ns)
	}
	if _, err := to.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return fmt.Errorf("install %s %s: %w", kind.Kind, u.GetName(), err)
	}
	return nil
}

var crdResource = schema.GroupVersionResource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}

func installCRDs(ctx context.Context, client kubernetes.Interface, dyn dynamic.Interface, crds []*unstructured.Unstructured) error {
	to := dyn.Resource(crdResource)
	for _, crd := range crds {
		if _, err := to.Apply(ctx, crd.GetName(), crd, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
			return fmt.Errorf("install CustomResourceDefinition %s: %w", crd.GetName(), err)
		}
	}
	for _, crd := range crds {
		if err := awaitEstablished(ctx, to, crd.GetName()); err != nil {
			return err
		}
		if err := awaitServed(ctx, client, crd); err != nil {
			return err
		}
	}
	return nil
}

// awaitEstablished waits until the API server has taken a CRD's names.
func awaitEstablished(ctx context.Context, to dynamic.ResourceInterface, name string) error {
	w, err := to.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()})
	if err != nil {
		return fmt.Errorf("wait for CustomResourceDefinition %s: %w", name, err)
	}
	defer w.Stop()
	last := "it has no status"
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &crd); err != nil {
			return fmt.Errorf("read CustomResourceDefinition %s: %w", name, err)
		}
		for _, cond := range crd.Status.Conditions {
			switch {
			case cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue:
				return nil
			case cond.Type == apiextensionsv1.NamesAccepted && cond.Status == apiextensionsv1.ConditionFalse:
				last = cond.Message
			}
		}
	}
	return fmt.Errorf("wait for CustomResourceDefinition %s: it is not established: %s", name, last)
}

// awaitServed waits until an established CRD's resource is found by clients. The API
// server's handlers and its discovery follow some milliseconds later, each by
// itself, and tell nobody.
func awaitServed(ctx context.Context, client kubernetes.Interface, u *unstructured.Unstructured) error {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &crd); err != nil {
		return fmt.Errorf("read CustomResourceDefinition %s: %w", u.GetName(), err)
	}
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		gv := schema.GroupVersion{Group: crd.Spec.Group, Version: v.Name}.String()
		for {
			list, err := client.Discovery().ServerResourcesForGroupVersion(gv)
			if err == nil && slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == crd.Spec.Names.Plural }) {
				break
			}
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("wait for %s to be served: %w", crd.Name, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for %s to be served: %w", crd.Name, context.Cause(ctx))
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}
