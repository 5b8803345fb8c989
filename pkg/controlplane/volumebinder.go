package controlplane

import (
	"context"
	"fmt"
	"reflect"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding/metrics"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// promptBinder stands in for the scheduler's binder of volumes, which looks once a
// second whether the claims of a pod are bound, the first time after a second: each
// pod with a new claim would start that much later. This one looks at what the
// scheduler knows already, after two milliseconds first and then after twice as
// long each time, up to the second.
type promptBinder struct {
	volumebinding.SchedulerVolumeBinder
	timeout time.Duration
	// update asks for what is to be bound and provisioned, and check looks whether
	// it is.
	update func(ctx context.Context, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) error
	check  func(log klog.Logger, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) (bool, error)
}

// BindPodVolumes implements volumebinding.SchedulerVolumeBinder.
func (b *promptBinder) BindPodVolumes(ctx context.Context, pod *corev1.Pod, volumes *volumebinding.PodVolumes) (err error) {
	defer func() {
		if err != nil {
			metrics.VolumeSchedulingStageFailed.WithLabelValues("bind").Inc()
		}
	}()
	claims := make([]*corev1.PersistentVolumeClaim, 0, len(volumes.DynamicProvisions))
	for _, p := range volumes.DynamicProvisions {
		claims = append(claims, p.PVC)
	}
	if err := b.update(ctx, pod, volumes.StaticBindings, claims); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("binding volumes: %w", ctx.Err())
		case <-time.After(pause):
		}
		bound, err := b.check(klog.FromContext(ctx), pod, volumes.StaticBindings, claims)
		if err != nil {
			return fmt.Errorf("binding volumes: %w", err)
		}
		if bound {
			return nil
		}
	}
}

// hasten gives every profile of a scheduler a promptBinder.
func hasten(profiles profile.Map) error {
	for name, f := range profiles {
		field := reflect.ValueOf(f).Elem().FieldByName("pluginsMap")
		if !field.IsValid() || field.Type() != reflect.TypeFor[map[string]fwk.Plugin]() {
			return fmt.Errorf("upstream's scheduler keeps its plugins elsewhere in this version of Kubernetes: %T", f)
		}
		plugins := *(*map[string]fwk.Plugin)(field.Addr().UnsafePointer())
		plugin, ok := plugins[names.VolumeBinding].(*volumebinding.VolumeBinding)
		if !ok {
			continue // the user's profile does without
		}
		inner := reflect.ValueOf(plugin.Binder)
		timeout := time.Duration(0)
		if inner.Kind() == reflect.Pointer && inner.Elem().Kind() == reflect.Struct {
			if t := inner.Elem().FieldByName("bindTimeout"); t.IsValid() && t.CanInt() {
				timeout = time.Duration(t.Int())
			}
		}
		if timeout == 0 {
			return fmt.Errorf("upstream's scheduler binds volumes otherwise in this version of Kubernetes: %T of profile %s", plugin.Binder, name)
		}
		self := inner.UnsafePointer()
		plugin.Binder = &promptBinder{
			SchedulerVolumeBinder: plugin.Binder, timeout: timeout,
			update: func(ctx context.Context, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) error {
				return bindAPIUpdate(self, ctx, pod, bindings, claims)
			},
			check: func(log klog.Logger, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) (bool, error) {
				return checkBindings(self, log, pod, bindings, claims)
			},
		}
	}
	return nil
}

// The two halves of upstream's BindPodVolumes.

//go:linkname bindAPIUpdate k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding.(*volumeBinder).bindAPIUpdate
func bindAPIUpdate(b unsafe.Pointer, ctx context.Context, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) error

//go:linkname checkBindings k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding.(*volumeBinder).checkBindings
func checkBindings(b unsafe.Pointer, log klog.Logger, pod *corev1.Pod, bindings []*volumebinding.BindingInfo, claims []*corev1.PersistentVolumeClaim) (bool, error)
