package kubelet

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"
	"unsafe"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/config"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
)

// nodeSyncEvery is the pause between two looks at whether the kubelet knows its
// node. Upstream's is a second, which a first pod waits for.
const nodeSyncEvery = 10 * time.Millisecond

// podSources gives the kubelet its pods, from the same places as upstream does:
// manifests in a folder, at a URL, and the API server once the node is known.
func (k *Kubelet) podSources(ctx context.Context, deps *upstream.Dependencies, kc *kubeletconfig.KubeletConfiguration) {
	log := klog.FromContext(ctx)
	node := types.NodeName(k.cfg.NodeName)

	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartStructuredLogging(3)
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: deps.EventClient.Events("")})
	deps.Recorder = events.NewRecorder(legacyscheme.Scheme, v1.EventSource{Component: "kubelet", Host: k.cfg.NodeName})
	deps.PodStartupLatencyTracker = kubeletutil.NewPodStartupLatencyTracker()

	pods := config.NewPodConfig(deps.Recorder, deps.PodStartupLatencyTracker)
	if kc.StaticPodPath != "" {
		config.NewSourceFile(log, kc.StaticPodPath, node, kc.FileCheckFrequency.Duration, pods.Channel(ctx, kubetypes.FileSource))
	}
	if kc.StaticPodURL != "" {
		header := http.Header{}
		for name, values := range kc.StaticPodURLHeader {
			for _, v := range values {
				header.Add(name, v)
			}
		}
		config.NewSourceURL(log, kc.StaticPodURL, header, node, kc.HTTPCheckFrequency.Duration, pods.Channel(ctx, kubetypes.HTTPSource))
	}

	made := make(chan cache.InformerSynced, 1)
	deps.Options = append(deps.Options, func(kl *upstream.Kubelet) {
		synced, err := nodeHasSynced(kl)
		if err != nil {
			log.Error(err, "pods are taken before the node is known")
			synced = func() bool { return true }
		}
		made <- synced
	})
	// It is asked in a goroutine of its own and may take its time.
	known := func() bool {
		var synced cache.InformerSynced
		select {
		case synced = <-made:
		case <-ctx.Done():
			return false
		}
		tick := time.NewTicker(nodeSyncEvery)
		defer tick.Stop()
		for !synced() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	config.NewSourceApiserver(log, deps.KubeClient, node, known, pods.Channel(ctx, kubetypes.ApiserverSource))
	deps.PodConfig = pods
}

// nodeHasSynced is how the kubelet tells whether it has seen its node, which
// upstream hides. TestTheKubeletTellsWhetherItKnowsItsNode tells when it moves.
func nodeHasSynced(kl *upstream.Kubelet) (cache.InformerSynced, error) {
	field := reflect.ValueOf(kl).Elem().FieldByName("nodeHasSynced")
	if !field.IsValid() || field.Type() != reflect.TypeFor[cache.InformerSynced]() {
		return nil, errors.New("upstream's kubelet has changed; adapt pkg/node/kubelet/sources.go")
	}
	synced := *(*cache.InformerSynced)(unsafe.Pointer(field.UnsafeAddr()))
	if synced == nil {
		return nil, errors.New("the kubelet does not look for its node")
	}
	return synced, nil
}
