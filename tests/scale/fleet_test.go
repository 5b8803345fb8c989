package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/token"
	"github.com/knarr-dev/knarr/pkg/version"
	"github.com/knarr-dev/knarr/tests/harness"
)

const (
	// leaseDuration and leaseEvery are the kubelet's defaults, as is statusEvery
	// where nothing about a node changes (nodeStatusReportFrequency).
	leaseDuration = 40 * time.Second
	leaseEvery    = 10 * time.Second
	statusEvery   = 5 * time.Minute
)

// fleet is many hollow agents.
type fleet struct {
	t      *testing.T
	server *harness.Node
	agents []*hollow
	work   sync.WaitGroup

	mu      sync.Mutex
	running map[string]time.Time // when a pod's agent was answered that it runs
	changed chan struct{}
}

func newFleet(t *testing.T, server *harness.Node, count int) *fleet {
	tok, err := token.Parse(server.Token(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, server: server, running: map[string]time.Time{}, changed: make(chan struct{})}
	for i := range count {
		f.agents = append(f.agents, &hollow{fleet: f, name: fmt.Sprintf("hollow-%d", i), index: i, token: tok})
	}
	return f
}

// join has all join, 16 at a time, and live until ctx ends.
func (f *fleet) join(ctx context.Context) {
	turns := make(chan struct{}, 16)
	for _, a := range f.agents {
		turns <- struct{}{}
		f.work.Go(func() {
			err := a.join(ctx)
			<-turns
			if err == nil {
				err = a.live(ctx)
			}
			if err != nil && ctx.Err() == nil {
				f.t.Errorf("%s: %v", a.name, err)
			}
		})
	}
}

func (f *fleet) wait() { f.work.Wait() }

func (f *fleet) note(pod string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running[pod] = time.Now()
	close(f.changed)
	f.changed = make(chan struct{})
}

// forget is for pods of before.
func (f *fleet) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.running)
}

// await returns when each of so many pods has run.
func (f *fleet) await(t *testing.T, prefix string, count int) map[string]time.Time {
	t.Helper()
	late := time.After(10 * time.Minute)
	for {
		f.mu.Lock()
		found, changed := map[string]time.Time{}, f.changed
		if len(f.running) >= count {
			for name, at := range f.running {
				if strings.HasPrefix(name, prefix) {
					found[name] = at
				}
			}
		}
		f.mu.Unlock()
		if len(found) >= count {
			return found
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%d of %d pods run", len(found), count)
		}
	}
}

// hollow is one agent.
type hollow struct {
	fleet  *fleet
	name   string
	index  int
	token  token.Token
	client kubernetes.Interface
	pods   int
}

func (h *hollow) join(ctx context.Context) error {
	s := h.fleet.server
	address := s.Host.Addr().String() + ":6443"
	id, err := join.Join(ctx, join.Config{
		Dir: filepath.Join(h.fleet.t.TempDir(), h.name), Node: h.name, Token: h.token, Address: address,
		Dial: s.Host.DialContext, Await: func(context.Context) error { return nil }, Version: version.Kubernetes, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	cfg := id.RESTConfig(address, s.Host.DialContext)
	cfg.ContentType, cfg.QPS = "application/vnd.kubernetes.protobuf", -1
	if h.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	_, err = h.client.CoreV1().Nodes().Create(ctx, h.node(), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return h.tell(ctx)
}

func (h *hollow) node() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: h.name, Labels: map[string]string{
		corev1.LabelHostname: h.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
}

// tell patches the Node's status.
func (h *hollow) tell(ctx context.Context) error {
	now := metav1.Now()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	status := corev1.NodeStatus{
		Capacity: room, Allocatable: room,
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.200.%d.%d", h.index/250, h.index%250+1)}, {Type: corev1.NodeHostName, Address: h.name}},
		NodeInfo:  corev1.NodeSystemInfo{KubeletVersion: version.Kubernetes, OSImage: "hollow", ContainerRuntimeVersion: "hollow://1"},
	}
	for kind, is := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeMemoryPressure: corev1.ConditionFalse,
		corev1.NodeDiskPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
	} {
		status.Conditions = append(status.Conditions, corev1.NodeCondition{Type: kind, Status: is, LastHeartbeatTime: now, LastTransitionTime: now, Reason: "Hollow"})
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = h.client.CoreV1().Nodes().Patch(ctx, h.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// live does what a node does: it renews its lease, tells its status, follows
// its pods and what its kube-proxy and DNS follow.
func (h *hollow) live(ctx context.Context) error {
	leases := h.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds, now := int32(leaseDuration.Seconds()), metav1.NowMicro()
	lease, err := leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: h.name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &h.name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	own := informers.NewSharedInformerFactoryWithOptions(h.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", h.name).String()
	}))
	pods := own.Core().V1().Pods().Informer()
	work := make(chan *corev1.Pod, 1024)
	hand := func(o any) {
		if p, ok := o.(*corev1.Pod); ok {
			work <- p
		}
	}
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: hand, UpdateFunc: func(_, o any) { hand(o) }}); err != nil {
		return err
	}
	own.Start(ctx.Done())
	defer own.Shutdown()
	all := informers.NewSharedInformerFactory(h.client, 0)
	all.Core().V1().Services().Informer()
	all.Discovery().V1().EndpointSlices().Informer()
	all.Core().V1().Nodes().Informer()
	all.Start(ctx.Done())
	defer all.Shutdown()

	// Agents do not renew all at the same moment.
	renew := time.NewTimer(leaseEvery * time.Duration(h.index%100) / 100)
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-work:
			if err := h.run(ctx, p); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				h.fleet.t.Logf("%s: pod %s: %v", h.name, p.Name, err)
			}
		case <-status.C:
			if err := h.tell(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		case <-renew.C:
			renew.Reset(leaseEvery)
			now := metav1.NowMicro()
			lease.Spec.RenewTime = &now
			next, err := leases.Update(ctx, lease, metav1.UpdateOptions{})
			if err != nil {
				if ctx.Err() == nil {
					h.fleet.t.Logf("%s: renew lease: %v", h.name, err)
				}
				continue
			}
			lease = next
		}
	}
}

// run tells of a pod what a kubelet does: first that it runs, at last that it is
// gone.
func (h *hollow) run(ctx context.Context, p *corev1.Pod) error {
	api := h.client.CoreV1().Pods(p.Namespace)
	if p.DeletionTimestamp != nil {
		none := int64(0)
		return api.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &none, Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	}
	if p.Status.Phase == corev1.PodRunning {
		return nil
	}
	h.pods++
	now := metav1.Now()
	ip := fmt.Sprintf("10.42.%d.%d", h.index%250, h.pods%250+2)
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &now, HostIP: "10.200.0.1", PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
		},
	}
	yes := true
	for _, c := range p.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &yes, ContainerID: "hollow://" + string(p.UID),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": status})
	if err != nil {
		return err
	}
	if _, err := api.Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	h.fleet.note(p.Name)
	return nil
}
