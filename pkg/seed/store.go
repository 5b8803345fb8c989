package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/client/v3/kubernetes"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/knarr-dev/knarr/pkg/controlplane/membership"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/encryption"
	"github.com/knarr-dev/knarr/pkg/join"
)

// Where the API server keeps what is changed here.
const (
	podPrefix       = "/registry/pods/"
	nodePrefix      = "/registry/minions/"
	secretPrefix    = "/registry/secrets/"
	leasePrefix     = "/registry/leases/"
	volumePrefix    = "/registry/persistentvolumes/"
	configMapPrefix = "/registry/configmaps/"
	systemNamespace = "/registry/namespaces/" + metav1.NamespaceSystem

	// rootCA is the ConfigMap of every namespace that pods know the authority by.
	rootCA    = "kube-root-ca.crt"
	rootCAKey = "ca.crt"
)

// forgotten are keys, and folders of keys, that hold for the machines and the
// authorities of a saved cluster only. What makes them makes them anew.
var forgotten = []string{
	"/registry/events/",
	// Who lives now.
	"/registry/masterleases/",
	leasePrefix + corev1.NamespaceNodeLease + "/",
	// Where the API server is.
	"/registry/services/endpoints/default/kubernetes",
	"/registry/endpointslices/default/kubernetes",
	// What follows from the authorities. The first would go on to trust the old ones.
	configMapPrefix + metav1.NamespaceSystem + "/extension-apiserver-authentication",
	configMapPrefix + metav1.NamespacePublic + "/cluster-info",
	configMapPrefix + join.ClusterNamespace + "/" + join.ClusterName,
	"/registry/certificatesigningrequests/",
}

// about is what a manifest says of a store.
type about struct {
	cluster string
	volumes []Volume
}

// strip takes out of a copy of a store what does not hold for another cluster, and
// all history.
func strip(ctx context.Context, path string, secrets *encryption.Opener) (about, error) {
	var a about
	err := edit(ctx, path, func(e *editor) error {
		for _, key := range forgotten {
			if err := e.drop(ctx, key); err != nil {
				return err
			}
		}
		for _, step := range []func() error{
			func() error { return change(ctx, e, podPrefix, restartPod) },
			func() error { return change(ctx, e, nodePrefix, resetNode) },
			func() error { return change(ctx, e, leasePrefix, releaseLease) },
			func() error {
				e.open = secrets
				defer func() { e.open = nil }()
				return change(ctx, e, secretPrefix, resetSecret)
			},
			func() error { return change(ctx, e, volumePrefix, a.addVolume) },
			func() error { return change(ctx, e, systemNamespace, a.identify) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && a.cluster == "" {
		err = errors.New("its store has no namespace kube-system")
	}
	if err != nil {
		return a, err
	}
	return a, datastore.Compact(ctx, path)
}

// adopt makes a store that was stripped that of a new authority, and of nodes that
// join by those keys. Without keys it becomes that of a control plane without nodes.
func adopt(ctx context.Context, path string, ca []byte, keys map[string][]byte) error {
	return edit(ctx, path, func(e *editor) error {
		if keys == nil {
			for _, prefix := range []string{nodePrefix, podPrefix, configMapPrefix + metav1.NamespaceSystem + "/" + membership.RecordName("")} {
				if err := e.drop(ctx, prefix); err != nil {
					return err
				}
			}
		}
		records := map[string][]byte{}
		for node, key := range keys {
			records[membership.RecordName(node)] = key
		}
		return change(ctx, e, configMapPrefix, func(cm *corev1.ConfigMap) (verdict, error) {
			if key := records[cm.Name]; key != nil && cm.Namespace == metav1.NamespaceSystem {
				return replaced, membership.Expect(cm, key)
			}
			if cm.Name != rootCA || cm.Data[rootCAKey] == "" {
				return unchanged, nil
			}
			cm.Data[rootCAKey] = string(ca)
			return replaced, nil
		})
	})
}

// restartPod has a pod run again where it was, as after a reboot of its node, but
// with nothing said of how it ran before. One that has ended stays as it is; one
// that was being deleted has been.
func restartPod(p *corev1.Pod) (verdict, error) {
	_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case mirror, p.DeletionTimestamp != nil && len(p.Finalizers) == 0:
		return dropped, nil
	case p.Status.Phase == corev1.PodSucceeded, p.Status.Phase == corev1.PodFailed:
		return unchanged, nil
	}
	now := corev1.PodStatus{Phase: corev1.PodPending, QOSClass: p.Status.QOSClass, NominatedNodeName: p.Status.NominatedNodeName}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			now.Conditions = append(now.Conditions, c)
		}
	}
	p.Status = now
	return replaced, nil
}

// resetNode leaves out what the machine said of itself, and flannel of its link.
func resetNode(n *corev1.Node) (verdict, error) {
	s := &n.Status
	s.Addresses, s.Images, s.VolumesInUse, s.VolumesAttached = nil, nil, nil, nil
	s.DaemonEndpoints = corev1.NodeDaemonEndpoints{}
	for name := range n.Annotations {
		if strings.HasPrefix(name, "flannel.alpha.coreos.com/") {
			delete(n.Annotations, name)
		}
	}
	return replaced, nil
}

// releaseLease has nobody wait for a leader that is no more. That of an API server is
// its own.
func releaseLease(l *coordinationv1.Lease) (verdict, error) {
	if l.Labels["apiserver.kubernetes.io/identity"] != "" {
		return dropped, nil
	}
	if l.Spec.HolderIdentity == nil {
		return unchanged, nil
	}
	l.Spec.HolderIdentity, l.Spec.AcquireTime, l.Spec.RenewTime = nil, nil, nil
	return replaced, nil
}

// resetSecret takes out tokens: those by which machines join, and those of
// ServiceAccounts, which the new cluster signs anew.
func resetSecret(s *corev1.Secret) (verdict, error) {
	switch s.Type {
	case corev1.SecretTypeBootstrapToken:
		return dropped, nil
	case corev1.SecretTypeServiceAccountToken:
		delete(s.Data, corev1.ServiceAccountTokenKey)
		delete(s.Data, corev1.ServiceAccountRootCAKey)
		return replaced, nil
	}
	return unchanged, nil
}

func (a *about) addVolume(v *corev1.PersistentVolume) (verdict, error) {
	if v.Spec.Local == nil || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return unchanged, nil
	}
	for _, t := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range t.MatchExpressions {
			if e.Key != corev1.LabelHostname || e.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			for _, node := range e.Values {
				a.volumes = append(a.volumes, Volume{Node: node, Path: v.Spec.Local.Path})
			}
		}
	}
	return unchanged, nil
}

func (a *about) identify(n *corev1.Namespace) (verdict, error) {
	if n.Name == metav1.NamespaceSystem {
		a.cluster = string(n.UID)
	}
	return unchanged, nil
}

// verdict is what becomes of an object.
type verdict int

const (
	unchanged verdict = iota
	replaced
	dropped
)

// editor changes a store that nobody else has open.
type editor struct {
	kv   kubernetes.Interface
	open *encryption.Opener // of what is read now, or nil
}

func edit(ctx context.Context, path string, do func(*editor) error) (err error) {
	i, err := datastore.Inspect(ctx, path)
	if err != nil {
		return err
	}
	i.Close()
	// What a power cut could take is thrown away with the whole copy.
	s, err := datastore.Open(ctx, datastore.Config{Path: path, Driver: i.Driver, Synchronous: "normal", CompactEvery: -1})
	if err != nil {
		return err
	}
	defer s.Close()
	c := s.Client()
	defer c.Close()
	return do(&editor{kv: c.Kubernetes})
}

// drop deletes a key, or all that begin with one that ends with a slash or a dot.
func (e *editor) drop(ctx context.Context, key string) error {
	all, err := e.kv.List(ctx, key, kubernetes.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", key, err)
	}
	for _, kv := range all.Kvs {
		if !strings.HasSuffix(key, "/") && !strings.HasSuffix(key, ".") && string(kv.Key) != key {
			continue
		}
		if err := e.delete(ctx, string(kv.Key), kv.ModRevision); err != nil {
			return err
		}
	}
	return nil
}

func (e *editor) delete(ctx context.Context, key string, revision int64) error {
	done, err := e.kv.OptimisticDelete(ctx, key, revision, kubernetes.DeleteOptions{GetOnFailure: true})
	if err == nil && !done.Succeeded {
		err = errors.New("another process writes to the store")
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// change judges each object below a prefix, and writes those that were changed.
func change[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, e *editor, prefix string, judge func(P) (verdict, error)) error {
	all, err := e.kv.List(ctx, prefix, kubernetes.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	for _, kv := range all.Kvs {
		key, stored := string(kv.Key), kv.Value
		if e.open != nil {
			if stored, err = e.open.Open(ctx, key, stored); err != nil {
				return fmt.Errorf("read %s: %w", key, err)
			}
		}
		var o P
		var v verdict
		decoded, kind, err := scheme.Codecs.UniversalDeserializer().Decode(stored, nil, nil)
		if err == nil {
			var ok bool
			if o, ok = decoded.(P); !ok {
				err = fmt.Errorf("it is a %s", kind)
			}
		}
		if err == nil {
			v, err = judge(o)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		switch {
		case v == dropped:
			err = e.delete(ctx, key, kv.ModRevision)
		case v == replaced:
			if stored, err = encode(o, kind.GroupVersion()); err == nil {
				err = e.put(ctx, key, stored, kv.ModRevision)
			}
		case !bytes.Equal(stored, kv.Value): // it was encrypted
			err = e.put(ctx, key, stored, kv.ModRevision)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *editor) put(ctx context.Context, key string, value []byte, revision int64) error {
	done, err := e.kv.OptimisticPut(ctx, key, value, revision, kubernetes.PutOptions{GetOnFailure: true})
	if err == nil && !done.Succeeded {
		err = errors.New("another process writes to the store")
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// encode writes an object as the API server stores it.
func encode(o runtime.Object, gv runtime.GroupVersioner) ([]byte, error) {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		return nil, errors.New("there is no serializer for protobuf")
	}
	return runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, gv), o)
}
