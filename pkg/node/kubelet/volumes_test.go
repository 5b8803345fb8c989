package kubelet

import (
	"context"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/volume"
	volumetest "k8s.io/kubernetes/pkg/volume/testing"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/mount-utils"
)

// podsOfNode are the pods that a volume manager asks the kubelet for. Those that
// have ended need no volumes.
type podsOfNode struct {
	mu    sync.Mutex
	pods  map[types.UID]*corev1.Pod
	ended map[types.UID]bool
	asked int // how often for all of them, once in each round
}

func (p *podsOfNode) GetPodByUID(uid types.UID) (*corev1.Pod, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod, ok := p.pods[uid]
	return pod, ok
}

func (p *podsOfNode) GetPods() (all []*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	for _, pod := range p.pods {
		all = append(all, pod)
	}
	return all
}

func (p *podsOfNode) ShouldPodContainersBeTerminating(uid types.UID) bool {
	return p.ShouldPodRuntimeBeRemoved(uid)
}

func (p *podsOfNode) ShouldPodRuntimeBeRemoved(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended[uid]
}

func (p *podsOfNode) rounds() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// add gives the node a pod with one volume.
func (p *podsOfNode) add(name string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}},
			}}},
		},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods[pod.UID] = pod
	return pod
}

func (p *podsOfNode) end(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended[pod.UID] = true
}

func newVolumeManager(t *testing.T, pods *podsOfNode) volumemanager.VolumeManager {
	t.Helper()
	plugins := &volume.VolumePluginMgr{}
	plugin := &volumetest.FakeVolumePlugin{
		PluginName: "fake", NonAttachable: true,
		CanSupportFn: func(spec *volume.Spec) bool { return spec.Volume != nil && spec.Volume.ConfigMap != nil },
	}
	var client kubernetes.Interface = fake.NewClientset()
	host := volumetest.NewFakeKubeletVolumeHost(t, t.TempDir(), client, nil)
	if err := plugins.InitPlugins([]volume.VolumePlugin{plugin}, nil, host); err != nil {
		t.Fatal(err)
	}
	return volumemanager.NewVolumeManager(true, "node", pods, pods, nil, plugins, mount.NewFakeMounter(nil),
		hostutil.NewFakeHostUtil(nil), t.TempDir(), record.NewFakeRecorder(100), volumetest.NewBlockVolumePathHandler())
}

// lives runs a volume manager through a pod's start and end, in the time of a
// bubble, and returns how long both took, and how many rounds a minute of rest had.
func lives(t *testing.T, wrap func(volumemanager.VolumeManager) volumemanager.VolumeManager) (up, down time.Duration, rounds int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pods := &podsOfNode{pods: map[types.UID]*corev1.Pod{}, ended: map[types.UID]bool{}}
		vm := wrap(newVolumeManager(t, pods))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { vm.Run(ctx, config.NewSourcesReady(func(sets.Set[string]) bool { return true })) })
		time.Sleep(10 * time.Second)

		pod := pods.add("p")
		began := time.Now()
		if err := vm.WaitForAttachAndMount(ctx, pod); err != nil {
			t.Fatal(err)
		}
		up = time.Since(began)
		if len(vm.GetMountedVolumesForPod("p")) != 1 || !vm.ReconcilerStatesHasBeenSynced() {
			t.Error("no volume is mounted, or nothing is in step")
		}
		time.Sleep(10 * time.Second)
		before := pods.rounds()
		time.Sleep(time.Minute)
		rounds = pods.rounds() - before

		pods.end(pod)
		began = time.Now()
		if err := vm.WaitForUnmount(ctx, pod); err != nil {
			t.Fatal(err)
		}
		down = time.Since(began)
		if vm.HasPossiblyMountedVolumesForPod("p") {
			t.Error("its volume is mounted still")
		}
	})
	return up, down, rounds
}

func TestPodsDoNotWaitForTheNextRoundOfTheVolumes(t *testing.T) {
	up, down, rounds := lives(t, func(m volumemanager.VolumeManager) volumemanager.VolumeManager {
		v, err := newPromptVolumes(m)
		if err != nil {
			t.Fatal(err)
		}
		return v
	})
	theirUp, theirDown, theirRounds := lives(t, func(m volumemanager.VolumeManager) volumemanager.VolumeManager { return m })
	t.Logf("a pod's volumes are mounted after %s and unmounted after %s (upstream %s, %s), and a minute has %d rounds (%d)", up, down, theirUp, theirDown, rounds, theirRounds)
	if up > 50*time.Millisecond || down > 50*time.Millisecond || rounds > 70 || rounds < 50 {
		t.Errorf("mounted after %s, unmounted after %s, %d rounds in a minute of rest", up, down, rounds)
	}
	if theirUp < upstreamLooks || theirRounds < 500 {
		t.Errorf("upstream mounts after %s by %d rounds a minute: is ours still of use?", theirUp, theirRounds)
	}
}

func TestVolumesOfUpstreamsKubeletAreHurried(t *testing.T) {
	k := &upstream.Kubelet{}
	at, ok := fieldOf[volumemanager.VolumeManager](reflect.ValueOf(k), "volumeManager")
	if !ok {
		t.Fatal("upstream's kubelet has its volume manager elsewhere")
	}
	*at = newVolumeManager(t, &podsOfNode{})
	if err := hurryVolumes(k); err != nil {
		t.Fatal(err)
	}
	if _, ok := (*at).(*promptVolumes); !ok {
		t.Errorf("it has %T", *at)
	}
	if err := hurryVolumes(k); err == nil {
		t.Error("what is not upstream's was taken for it")
	}
}
