package kubelet

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/cache"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/metrics"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/populator"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/reconciler"
	"k8s.io/kubernetes/pkg/volume"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
)

const (
	// busyRound is upstream's pause between two rounds, kept while somebody waits for
	// volumes and for settled after that.
	busyRound = 100 * time.Millisecond
	settled   = 3 * time.Second
	// calmRound is the pause while nobody does. What a round then finds to do comes
	// from nobody who waits: a volume that grew, or one of a pod long gone.
	calmRound = time.Second
	// shortest is the least pause between two rounds, whoever asks for one.
	shortest = 10 * time.Millisecond

	// upstreamLooks is how often upstream looks whether a pod's volumes are as it
	// waits for; until its second look we do so, beginning with firstLook and each
	// time after twice as long.
	upstreamLooks = 300 * time.Millisecond
	firstLook     = 5 * time.Millisecond
)

// promptVolumes is upstream's volume manager with other times. Upstream decides what
// to mount and unmount in two loops ten times a second, for ever, which is a tenth
// of what an idle node costs, and a pod waits for both and then until the next look,
// 300 ms after the first. Here a pod that waits has a round at once and is looked
// after every few milliseconds; while none waits, a round a second is made.
type promptVolumes struct {
	volumemanager.VolumeManager // upstream's
	parts                       volumeParts

	populate, reconcile chan struct{} // of capacity 1: a round is wanted

	mu      sync.Mutex
	waiting int
	last    time.Time // when somebody waited last
}

// volumeParts are what upstream's volume manager is made of.
type volumeParts struct {
	populator  populator.DesiredStateOfWorldPopulator
	reconciler reconciler.Reconciler
	plugins    *volume.VolumePluginMgr
	client     kubernetes.Interface
	desired    cache.DesiredStateOfWorld
	actual     cache.ActualStateOfWorld
}

// hurryVolumes puts ours into the place of upstream's volume manager in a kubelet
// that does not run yet.
func hurryVolumes(k *upstream.Kubelet) error {
	at, ok := fieldOf[volumemanager.VolumeManager](reflect.ValueOf(k), "volumeManager")
	if !ok {
		return errors.New("upstream's kubelet has no volume manager where it had one")
	}
	v, err := newPromptVolumes(*at)
	if err != nil {
		return err
	}
	*at = v
	return nil
}

func newPromptVolumes(m volumemanager.VolumeManager) (*promptVolumes, error) {
	v := &promptVolumes{VolumeManager: m, populate: make(chan struct{}, 1), reconcile: make(chan struct{}, 1), last: time.Now()}
	inner := reflect.ValueOf(m)
	if !take(inner, "desiredStateOfWorldPopulator", &v.parts.populator) || !take(inner, "reconciler", &v.parts.reconciler) ||
		!take(inner, "volumePluginMgr", &v.parts.plugins) || !take(inner, "kubeClient", &v.parts.client) ||
		!take(inner, "desiredStateOfWorld", &v.parts.desired) || !take(inner, "actualStateOfWorld", &v.parts.actual) {
		return nil, fmt.Errorf("upstream's volume manager is made otherwise in this version of Kubernetes: %T", m)
	}
	return v, nil
}

// take reads a field of the struct that v points to.
func take[T any](v reflect.Value, name string, to *T) bool {
	f, ok := fieldOf[T](v, name)
	if ok {
		*to = *f
	}
	return ok
}

// fieldOf is the field of that name and exactly that type, in the struct that v
// points to, exported or not.
func fieldOf[T any](v reflect.Value, name string) (*T, bool) {
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil, false
	}
	f := v.Elem().FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil, false
	}
	return (*T)(f.Addr().UnsafePointer()), true
}

// Run implements volumemanager.VolumeManager.
func (v *promptVolumes) Run(ctx context.Context, ready config.SourcesReady) {
	if v.parts.client != nil {
		go v.parts.plugins.Run(ctx.Done())
	}
	metrics.Register(v.parts.actual, v.parts.desired, v.parts.plugins)
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		self := reflect.ValueOf(v.parts.populator).UnsafePointer()
		v.rounds(ctx, v.populate, func() {
			complete := ready.AllReady()
			populatorLoop(self, ctx)
			if complete && !v.parts.populator.HasAddedPods() {
				// With no time left it only notes that all pods have been added.
				over, cancel := context.WithCancel(ctx)
				cancel()
				v.parts.populator.Run(over, ready)
			}
			want(v.reconcile)
		})
	})
	// With no time left it only learns what is mounted already.
	over := make(chan struct{})
	close(over)
	v.parts.reconciler.Run(ctx, over)
	self := reflect.ValueOf(v.parts.reconciler).UnsafePointer()
	v.rounds(ctx, v.reconcile, func() { reconcile(self, ctx) })
}

// The loops' bodies.

//go:linkname populatorLoop k8s.io/kubernetes/pkg/kubelet/volumemanager/populator.(*desiredStateOfWorldPopulator).populatorLoop
func populatorLoop(p unsafe.Pointer, ctx context.Context)

//go:linkname reconcile k8s.io/kubernetes/pkg/kubelet/volumemanager/reconciler.(*reconciler).reconcile
func reconcile(r unsafe.Pointer, ctx context.Context)

// rounds makes one at once, and then whenever one is wanted or due, until ctx ends.
func (v *promptVolumes) rounds(ctx context.Context, wanted <-chan struct{}, round func()) {
	for {
		round()
		rest := time.NewTimer(shortest)
		select {
		case <-rest.C:
		case <-ctx.Done():
			return
		}
		rest.Reset(v.pause())
		select {
		case <-rest.C:
		case <-wanted:
		case <-ctx.Done():
			return
		}
	}
}

func want(round chan<- struct{}) {
	select {
	case round <- struct{}{}:
	default: // it is wanted already
	}
}

// pause is how long nothing is to be done.
func (v *promptVolumes) pause() time.Duration {
	if !v.parts.populator.HasAddedPods() || !v.parts.reconciler.StatesHasBeenSynced() {
		return busyRound
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiting > 0 || time.Since(v.last) < settled {
		return busyRound
	}
	return calmRound
}

// hurry has a round made at once, and others until upstream has what it waits for.
func (v *promptVolumes) hurry(ctx context.Context, asWanted func() bool, upstream func() error) error {
	if asWanted() {
		// As for every pod once a minute; contents are brought up to date.
		defer want(v.populate)
		return upstream()
	}
	v.mu.Lock()
	v.waiting++
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.waiting--
		v.last = time.Now()
		v.mu.Unlock()
	}()
	want(v.populate)
	v.await(ctx, asWanted)
	return upstream()
}

// await looks for what the volumes' plugins do in goroutines of their own, until
// upstream would look a second time. What they have done may need another round: a
// volume is attached, then mounted.
func (v *promptVolumes) await(ctx context.Context, asWanted func() bool) {
	began := time.Now()
	look := time.NewTimer(firstLook)
	defer look.Stop()
	for next := firstLook; time.Since(began) < upstreamLooks; next *= 2 {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if asWanted() {
			return
		}
		want(v.reconcile)
		look.Reset(next)
	}
}

// WaitForAttachAndMount implements volumemanager.VolumeManager.
func (v *promptVolumes) WaitForAttachAndMount(ctx context.Context, pod *corev1.Pod) error {
	if pod == nil {
		return nil
	}
	mounts, devices, _ := volumeutil.GetPodVolumeNames(pod, false)
	expected := mounts.Union(devices)
	if expected.Len() == 0 {
		return nil
	}
	name := volumeutil.GetUniquePodName(pod)
	mounted := func() bool {
		now := v.GetMountedVolumesForPod(name)
		for volume := range expected {
			if _, ok := now[volume]; !ok {
				return false
			}
		}
		return true
	}
	return v.hurry(ctx, mounted, func() error { return v.VolumeManager.WaitForAttachAndMount(ctx, pod) })
}

// WaitForUnmount implements volumemanager.VolumeManager.
func (v *promptVolumes) WaitForUnmount(ctx context.Context, pod *corev1.Pod) error {
	if pod == nil {
		return nil
	}
	name := volumeutil.GetUniquePodName(pod)
	unmounted := func() bool { return !v.parts.actual.PodHasMountedVolumes(name) }
	return v.hurry(ctx, unmounted, func() error { return v.VolumeManager.WaitForUnmount(ctx, pod) })
}
