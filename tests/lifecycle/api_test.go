package lifecycle

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/tests/harness"
)

func TestAPIWithoutANode(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent"}})
	t.Run("serves every kind alike", func(t *testing.T) { servesEveryKindAlike(t, n) })
	t.Run("goes on with a list in pages after a compaction", func(t *testing.T) { listsInPagesAfterACompaction(t, n) })
}

// What discovery knows and samples does not is a failure: the list shall stay
// whole.
func servesEveryKindAlike(t *testing.T, n *harness.Node) {
	ns := n.Namespace(t)
	byKind := readSamples(t, ns)
	client, err := dynamic.NewForConfig(n.REST)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := n.Client.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	var deletions sync.WaitGroup
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "create") || !slices.Contains(r.Verbs, "watch") {
				continue // a question, not a thing
			}
			gvk := gv.WithKind(r.Kind)
			object, ok := byKind[gvk]
			delete(byKind, gvk)
			if !ok {
				t.Errorf("there is no sample of %s %s", gv, r.Kind)
				continue
			}
			var at dynamic.ResourceInterface = client.Resource(gv.WithResource(r.Name))
			if r.Namespaced {
				at = client.Resource(gv.WithResource(r.Name)).Namespace(ns)
			}
			k := &kindTest{ResourceInterface: at, sample: object, verbs: r.Verbs}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			gone, err := k.run(ctx)
			if err != nil {
				t.Errorf("%s %s: %v", gv, r.Kind, err)
				continue
			}
			// Some kinds take seconds to go; they do so beside each other.
			deletions.Go(func() {
				if err := gone(); err != nil {
					t.Errorf("%s %s: %v", gv, r.Kind, err)
				}
			})
		}
	}
	deletions.Wait()
	for gvk := range byKind {
		t.Errorf("%s is not served", gvk)
	}
}

// readSamples fills the gaps in samples.
func readSamples(t *testing.T, ns string) map[schema.GroupVersionKind]*unstructured.Unstructured {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "anna"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	text := strings.NewReplacer(
		"CONDITIONS", `[{type: Sample, status: "True", reason: Test, message: by a test, lastTransitionTime: "2026-01-01T00:00:00Z"}]`,
		"TEMPLATE", `{metadata: {labels: {app: sample}}, spec: {containers: [{name: a, image: a}]}}`,
		"ONCE", `{spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}`,
		"REQUEST", base64.StdEncoding.EncodeToString(request),
		"NS", ns,
	).Replace(samples)
	all := map[schema.GroupVersionKind]*unstructured.Unstructured{}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o.GetName() == "" {
			o.SetName("sample")
		}
		o.SetLabels(map[string]string{"sample": "yes"})
		all[o.GroupVersionKind()] = o
	}
	return all
}

// kindTest takes an object of a kind through its life.
type kindTest struct {
	dynamic.ResourceInterface
	sample *unstructured.Unstructured
	verbs  metav1.Verbs
}

// run returns what waits for the object to be gone.
func (k *kindTest) run(ctx context.Context) (gone func() error, err error) {
	name, selected := k.sample.GetName(), metav1.ListOptions{LabelSelector: "sample=yes"}
	status := k.sample.Object["status"]
	delete(k.sample.Object, "status")

	before, err := k.List(ctx, selected)
	if err != nil || len(before.Items) != 0 {
		return nil, fmt.Errorf("list before it is there: %d, %w", len(before.Items), err)
	}
	w, err := k.Watch(ctx, metav1.ListOptions{LabelSelector: selected.LabelSelector, ResourceVersion: before.GetResourceVersion()})
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	if _, err := k.Create(ctx, k.sample, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if err := until(ctx, w, watch.Added, ""); err != nil {
		return nil, err
	}
	patched, err := k.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata": {"annotations": {"by": "patch"}}}`), metav1.PatchOptions{})
	if err != nil || patched.GetAnnotations()["by"] != "patch" {
		return nil, fmt.Errorf("patch: %v, %w", patched, err)
	}
	if err := until(ctx, w, watch.Modified, "patch"); err != nil {
		return nil, err
	}
	if err := k.changeStatus(ctx, name, status); err != nil {
		return nil, err
	}
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		o, err := k.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		o.SetAnnotations(map[string]string{"by": "update"})
		_, err = k.Update(ctx, o, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	if err := until(ctx, w, watch.Modified, "update"); err != nil {
		return nil, err
	}
	if l, err := k.List(ctx, selected); err != nil || len(l.Items) != 1 || l.Items[0].GetName() != name {
		return nil, fmt.Errorf("list: %v, %w", l, err)
	}
	background := metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}
	if slices.Contains(k.verbs, "deletecollection") {
		err = k.DeleteCollection(ctx, background, selected)
	} else {
		err = k.Delete(ctx, name, background)
	}
	if err != nil {
		return nil, fmt.Errorf("delete: %w", err)
	}
	return func() error {
		defer w.Stop()
		return until(ctx, w, watch.Deleted, "")
	}, nil
}

// changeStatus patches the status, if the sample has one, by the resource of its
// own.
func (k *kindTest) changeStatus(ctx context.Context, name string, status any) error {
	if status == nil {
		return nil
	}
	patch, err := yaml.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	if patch, err = yaml.YAMLToJSON(patch); err != nil {
		return err
	}
	o, err := k.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("patch status: %w", err)
	}
	if !within(status, o.Object["status"]) {
		return fmt.Errorf("the status was patched to %v, it is %v", status, o.Object["status"])
	}
	if o, err = k.Get(ctx, name, metav1.GetOptions{}, "status"); err != nil || o.GetName() != name {
		return fmt.Errorf("get status: %v, %w", o, err)
	}
	return nil
}

// within tells whether all of a part is in the whole.
func within(part, whole any) bool {
	switch p := part.(type) {
	case map[string]any:
		w, ok := whole.(map[string]any)
		for key, v := range p {
			ok = ok && within(v, w[key])
		}
		return ok
	case []any:
		w, ok := whole.([]any)
		for i, v := range p {
			ok = ok && i < len(w) && within(v, w[i])
		}
		return ok
	}
	return fmt.Sprint(part) == fmt.Sprint(whole)
}

// until waits for an event, of an object with the annotation if one is given.
// Controllers may change the object as well.
func until(ctx context.Context, w watch.Interface, kind watch.EventType, by string) error {
	for {
		select {
		case e, ok := <-w.ResultChan():
			o, is := e.Object.(*unstructured.Unstructured)
			if !ok || !is || e.Type == watch.Error {
				return fmt.Errorf("the watch ended before %s by %q: %v", kind, by, e.Object)
			}
			if e.Type == kind && (by == "" || o.GetAnnotations()["by"] == by) {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the watch did not tell of %s by %q: %w", kind, by, ctx.Err())
		}
	}
}
