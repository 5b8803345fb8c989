package kubelet

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/events"
)

// statusFuncs is the field with what writes a Node's status, in upstream's
// pkg/kubelet/kubelet.go.
const statusFuncs = "setNodeStatusFuncs"

type statusFunc = func(context.Context, *corev1.Node) error

// addExternalIPs has the kubelet tell addresses of type ExternalIP. Upstream
// leaves those to cloud controllers, which need a taint, a lease and a loop to
// write what the machine's owner has said already.
//
// It stands before the recorder of events that deps has: the only call of ours
// between the making of the kubelet and its first look at its Node is its first
// event.
func (k *Kubelet) addExternalIPs(deps *upstream.Dependencies) error {
	if len(k.cfg.ExternalIPs) == 0 {
		return nil
	}
	field, ok := reflect.TypeFor[upstream.Kubelet]().FieldByName(statusFuncs)
	if !ok || field.Type != reflect.TypeFor[[]statusFunc]() {
		return errors.New("--node-external-ip: this version of the kubelet keeps its addresses elsewhere")
	}
	var made *upstream.Kubelet
	deps.Options = append(deps.Options, func(u *upstream.Kubelet) { made = u })
	deps.Recorder = &birthRecorder{
		EventRecorderLogger: deps.Recorder,
		born: sync.OnceFunc(func() {
			at := unsafe.Add(unsafe.Pointer(made), field.Offset)
			funcs := (*[]statusFunc)(at)
			*funcs = append(*funcs, externalIPs(k.cfg.ExternalIPs))
		}),
	}
	return nil
}

// externalIPs adds addresses to those that a Node's status has.
func externalIPs(ips []netip.Addr) statusFunc {
	return func(_ context.Context, n *corev1.Node) error {
		for _, ip := range ips {
			a := corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip.String()}
			if !slices.Contains(n.Status.Addresses, a) {
				n.Status.Addresses = append(n.Status.Addresses, a)
			}
		}
		return nil
	}
}

// birthRecorder tells when the kubelet says that it starts.
type birthRecorder struct {
	record.EventRecorderLogger
	born func()
}

func (r *birthRecorder) Eventf(object runtime.Object, eventtype, reason, format string, args ...any) {
	if reason == events.StartingKubelet {
		r.born()
	}
	r.EventRecorderLogger.Eventf(object, eventtype, reason, format, args...)
}
