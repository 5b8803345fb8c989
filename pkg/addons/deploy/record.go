package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
)

const (
	// recordNamespace has a ConfigMap for each source, which remembers what the
	// source made. Events about a source are about that ConfigMap.
	recordNamespace = metav1.NamespaceSystem
	// recordLabel is on each of these ConfigMaps.
	recordLabel = "knarr.dev/manifests"
	// sourceAnnotation on an object names the source that it is from, and on a
	// record the source that it is of.
	sourceAnnotation = "knarr.dev/manifest"

	keySum     = "sha256"
	keyObjects = "objects"
	keyServers = "servers"
)

// object identifies one that a source made.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

func objectOf(o *unstructured.Unstructured) object {
	return object{APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (o object) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(o.APIVersion, o.Kind)
}

// same tells whether both are one object, perhaps in two versions of its API.
func (o object) same(p object) bool {
	return o.gvk().GroupKind() == p.gvk().GroupKind() && o.Namespace == p.Namespace && o.Name == p.Name
}

func (o object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// record is what is remembered of a source, in the cluster.
type record struct {
	path string
	// sum is of the content that has been applied; empty while it has not.
	sum     string
	objects []object
	// servers are those that have the source in their folders.
	servers []string
}

// recordName is the name of a source's ConfigMap.
func recordName(path string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(path))
	clean = strings.Trim(clean[max(0, len(clean)-100):], "-")
	return strings.Trim("knarr-manifest-"+clean, "-") + "-" + sumOf([]byte(path))[:8]
}

// records are all of them, by path.
func records(ctx context.Context, client kubernetes.Interface) (map[string]*record, error) {
	list, err := client.CoreV1().ConfigMaps(recordNamespace).List(ctx, metav1.ListOptions{LabelSelector: recordLabel})
	if err != nil {
		return nil, fmt.Errorf("list records of manifests: %w", err)
	}
	all := map[string]*record{}
	for _, m := range list.Items {
		r, err := recordOf(&m)
		if err != nil {
			return nil, err
		}
		if r.path != "" && recordName(r.path) == m.Name { // else it is somebody's copy
			all[r.path] = r
		}
	}
	return all, nil
}

// load reads the record of one source; nil if there is none.
func load(ctx context.Context, client kubernetes.Interface, path string) (*record, error) {
	m, err := client.CoreV1().ConfigMaps(recordNamespace).Get(ctx, recordName(path), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what %s made: %w", path, err)
	}
	return recordOf(m)
}

func recordOf(m *corev1.ConfigMap) (*record, error) {
	r := &record{path: m.Annotations[sourceAnnotation], sum: m.Data[keySum], servers: strings.Fields(m.Data[keyServers])}
	if text := m.Data[keyObjects]; text != "" {
		if err := json.Unmarshal([]byte(text), &r.objects); err != nil {
			return nil, fmt.Errorf("read record %s/%s: %w; what the file %s made is not known: delete the record to have it applied anew", recordNamespace, m.Name, err, r.path)
		}
	}
	return r, nil
}

// save writes a record.
func (r *record) save(ctx context.Context, client kubernetes.Interface) error {
	text, err := json.Marshal(r.objects)
	if err != nil {
		return fmt.Errorf("encode record of %s: %w", r.path, err)
	}
	slices.Sort(r.servers)
	r.servers = slices.Compact(r.servers)
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: recordName(r.path), Namespace: recordNamespace,
			Labels: map[string]string{recordLabel: "", "app.kubernetes.io/managed-by": manager}, Annotations: map[string]string{sourceAnnotation: r.path},
		},
		Data: map[string]string{keySum: r.sum, keyObjects: string(text), keyServers: strings.Join(r.servers, " ")},
	}
	maps := client.CoreV1().ConfigMaps(recordNamespace)
	opts := metav1.UpdateOptions{FieldManager: manager}
	if _, err = maps.Update(ctx, m, opts); apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, m, metav1.CreateOptions{FieldManager: manager})
	}
	if err != nil {
		return fmt.Errorf("remember what %s makes: %w", r.path, err)
	}
	return nil
}

// remove deletes a record.
func (r *record) remove(ctx context.Context, client kubernetes.Interface) error {
	err := client.CoreV1().ConfigMaps(recordNamespace).Delete(ctx, recordName(r.path), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("forget what %s made: %w", r.path, err)
	}
	return nil
}
