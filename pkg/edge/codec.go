package edge

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

// digest is the first bytes of a SHA-256: enough to tell whether something has
// changed, with nothing kept in memory.
type digest [8]byte

// content is an object as the store keeps it.
type content struct {
	id   objectID
	kind schema.GroupVersionKind
	rv   string
	uid  types.UID
	// pod is the pod that a token is for.
	pod types.UID
	// value is the object in protobuf, as the API server sends it, without
	// metadata.managedFields, of which no reader here has any use.
	value []byte
	// full is of the object without what time alone changes, vital of the part
	// without which pods would not start as they were.
	full, vital digest
}

var errUnknownType = errors.New("an object of a type that is not kept")

// decode reads an object in any form that the API server sends.
func decode(data []byte) (runtime.Object, error) {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnknownType, err)
	}
	return obj, nil
}

// prepare turns an object into what is kept of it. The object is changed.
func prepare(obj runtime.Object, q question) (content, error) {
	m, err := meta.Accessor(obj)
	if err != nil || m.GetName() == "" {
		return content{}, errUnknownType
	}
	kind, err := kindOf(obj, q.gv)
	if err != nil {
		return content{}, err
	}
	m.SetManagedFields(nil)
	c := content{
		id:   objectID{q.id.resource, m.GetNamespace(), m.GetName()},
		kind: kind, rv: m.GetResourceVersion(), uid: m.GetUID(),
	}
	if c.value, err = encode(obj, kind, false); err != nil {
		return content{}, err
	}
	c.full, c.vital, err = digests(obj, kind)
	return c, err
}

// kindOf is the kind of a typed object, which items of lists do not carry.
func kindOf(obj runtime.Object, gv schema.GroupVersion) (schema.GroupVersionKind, error) {
	kinds, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return schema.GroupVersionKind{}, fmt.Errorf("%w: %w", errUnknownType, err)
	}
	for _, k := range kinds {
		if k.GroupVersion() == gv {
			return k, nil
		}
	}
	return schema.GroupVersionKind{}, errUnknownType
}

// encode writes an object as the API server would.
func encode(obj runtime.Object, kind schema.GroupVersionKind, asJSON bool) ([]byte, error) {
	obj.GetObjectKind().SetGroupVersionKind(kind)
	if asJSON {
		b, err := json.Marshal(obj)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", kind.Kind, err)
		}
		return append(b, '\n'), nil
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &b); err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind.Kind, err)
	}
	return b.Bytes(), nil
}

// digests changes the object.
func digests(obj runtime.Object, kind schema.GroupVersionKind) (full, vital digest, err error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetResourceVersion("")
	}
	switch o := obj.(type) {
	case *corev1.Node:
		for i := range o.Status.Conditions {
			o.Status.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	case *corev1.Pod:
		for i := range o.Status.Conditions {
			o.Status.Conditions[i].LastProbeTime = metav1.Time{}
		}
	case *discoveryv1.EndpointSlice:
		delete(o.Annotations, corev1.EndpointsLastChangeTriggerTime)
	}
	if full, err = sum(obj, kind); err != nil {
		return full, vital, err
	}
	switch o := obj.(type) {
	case *corev1.Node:
		s := o.Status
		o.Status = corev1.NodeStatus{
			Addresses: s.Addresses, DaemonEndpoints: s.DaemonEndpoints,
			VolumesInUse: s.VolumesInUse, VolumesAttached: s.VolumesAttached,
		}
	case *corev1.Pod:
		// A pod that has ended must not be started again.
		o.Status = corev1.PodStatus{Phase: ended(o.Status.Phase)}
	case *authenticationv1.TokenRequest:
		o.Status = authenticationv1.TokenRequestStatus{}
	default:
		return full, full, nil
	}
	vital, err = sum(obj, kind)
	return full, vital, err
}

func ended(p corev1.PodPhase) corev1.PodPhase {
	if p == corev1.PodSucceeded || p == corev1.PodFailed {
		return p
	}
	return ""
}

func sum(obj runtime.Object, kind schema.GroupVersionKind) (d digest, err error) {
	b, err := encode(obj, kind, false)
	if err != nil {
		return d, err
	}
	s := sha256.Sum256(b)
	copy(d[:], s[:])
	return d, nil
}

// tokenID is under which the answer to a TokenRequest is kept. The lifetime that
// was asked for is no part of it: offline, any token is better than none.
func tokenID(namespace, account string, r *authenticationv1.TokenRequest) objectID {
	h := sha256.New()
	write := func(s string) {
		h.Write(binary.AppendUvarint(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	write(account)
	if ref := r.Spec.BoundObjectRef; ref != nil {
		write(ref.Kind)
		write(ref.APIVersion)
		write(ref.Name)
		write(string(ref.UID))
	}
	for _, a := range r.Spec.Audiences {
		write(a)
	}
	return objectID{tokenResource, namespace, fmt.Sprintf("%x", h.Sum(nil)[:16])}
}

// prepareToken turns an answer to a TokenRequest into what is kept of it.
func prepareToken(id objectID, r *authenticationv1.TokenRequest) (content, error) {
	kind := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	c := content{id: id, kind: kind}
	if ref := r.Spec.BoundObjectRef; ref != nil && ref.Kind == "Pod" {
		c.pod = ref.UID
	}
	r.ManagedFields = nil
	var err error
	if c.value, err = encode(r, kind, false); err != nil {
		return content{}, err
	}
	c.full, c.vital, err = digests(r, kind)
	return c, err
}

// encodeList makes a list of the objects' contents.
func encodeList(kind schema.GroupVersionKind, rv string, values [][]byte, asJSON bool) ([]byte, error) {
	kind.Kind += "List"
	l, err := scheme.Scheme.New(kind)
	if err != nil {
		return nil, fmt.Errorf("make a list: %w", err)
	}
	items := make([]runtime.Object, len(values))
	for i, v := range values {
		if items[i], err = decode(v); err != nil {
			return nil, err
		}
		items[i].GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	if err := meta.SetList(l, items); err != nil {
		return nil, fmt.Errorf("make a list: %w", err)
	}
	m, err := meta.ListAccessor(l)
	if err != nil {
		return nil, fmt.Errorf("make a list: %w", err)
	}
	m.SetResourceVersion(rv)
	return encode(l, kind, asJSON)
}

// itemKind is the kind of the items of a list.
func itemKind(list schema.GroupVersionKind) (schema.GroupVersionKind, bool) {
	name, ok := strings.CutSuffix(list.Kind, "List")
	return list.GroupVersion().WithKind(name), ok && name != ""
}

// encodeValue gives a kept value in the form that a client wants.
func encodeValue(value []byte, asJSON bool) ([]byte, error) {
	if !asJSON {
		return value, nil
	}
	obj, err := decode(value)
	if err != nil {
		return nil, err
	}
	return encode(obj, obj.GetObjectKind().GroupVersionKind(), true)
}

// encodeEvent frames an event of a watch; object is encoded already.
func encodeEvent(event string, object []byte, asJSON bool) ([]byte, error) {
	e := metav1.WatchEvent{Type: event, Object: runtime.RawExtension{Raw: object}}
	if asJSON {
		b, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("encode an event: %w", err)
		}
		return append(b, '\n'), nil
	}
	b, err := e.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode an event: %w", err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

// bookmark is the event that ends the first objects of a watch.
func bookmark(kind schema.GroupVersionKind, rv string, asJSON bool) ([]byte, error) {
	obj, err := scheme.Scheme.New(kind)
	if err != nil {
		return nil, fmt.Errorf("make a bookmark: %w", err)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, fmt.Errorf("make a bookmark: %w", err)
	}
	m.SetResourceVersion(rv)
	m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	b, err := encode(obj, kind, asJSON)
	if err != nil {
		return nil, err
	}
	return encodeEvent("BOOKMARK", b, asJSON)
}

// expired is the event after which a client lists anew.
func expired(asJSON bool) ([]byte, error) {
	s := &metav1.Status{
		Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired,
		Message: "a server answers again; what was seen until now came from this node's own store",
	}
	b, err := encode(s, schema.GroupVersionKind{Version: "v1", Kind: "Status"}, asJSON)
	if err != nil {
		return nil, err
	}
	return encodeEvent("ERROR", b, asJSON)
}
