package addons

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/addons/storage"
	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/part"
)

// controlPlane runs a control plane with the add-ons and no node, on loopback.
func controlPlane(t *testing.T) (*config.Config, kubernetes.Interface) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := config.Default()
	cfg.DataDir, cfg.RunDir, cfg.Kubeconfig.Path = filepath.Join(dir, "data"), filepath.Join(dir, "run"), filepath.Join(dir, "kubeconfig.yaml")
	cfg.API.Port, cfg.API.BindAddress = port, netip.MustParseAddr("127.0.0.1")
	// Endpoints may not be on loopback; nobody goes there.
	cfg.API.AdvertiseAddress = netip.MustParseAddr("192.0.2.1")
	cfg.Node.Name, cfg.DisableAgent = "server", true
	err = cfg.Complete(config.Host{
		Name:     "server",
		Address:  func(int) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.1"), nil },
		ReadFile: os.ReadFile,
		HasGroup: func(string) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(cluster.Config{Config: cfg, Log: slog.New(slog.DiscardHandler), Parts: []part.Part{Addons{ControlPlane: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	select {
	case <-c.Ready():
	case err := <-c.Err():
		t.Fatal(err)
	case <-time.After(2 * time.Minute):
		t.Fatalf("%+v", c.Group().Status())
	}
	client, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return cfg, client
}

// until watches until an object is as wanted.
func until[T runtime.Object](t *testing.T, what string, start func(context.Context, metav1.ListOptions) (watch.Interface, error), wanted func(watch.EventType, T) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w, err := start(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if o, ok := e.Object.(T); ok && wanted(e.Type, o) {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A node without a kubelet is enough for the API server, the scheduler and the
// controllers to play their part.
func TestClaimsAndServicesGetWhatTheyAskFor(t *testing.T) {
	cfg, client := controlPlane(t)
	ctx := t.Context()
	node := must[*corev1.Node](t)(client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelHostname: "n1"}},
	}, metav1.CreateOptions{}))
	node.Status = corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}},
		Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10"),
		},
	}
	// Not an update: the controllers write to the Node as soon as it exists.
	status := must[[]byte](t)(json.Marshal(map[string]any{"status": node.Status}))
	must[*corev1.Node](t)(client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, status, metav1.PatchOptions{}, "status"))
	agent := storage.NewAgent(storage.AgentConfig{Client: func() (kubernetes.Interface, error) { return client, nil }, Node: "n1"})
	agentCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(agentCtx, make(chan struct{})) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	must[*corev1.Service](t)(client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}))
	until(t, "the Service's address", client.CoreV1().Services("default").Watch, func(_ watch.EventType, s *corev1.Service) bool {
		in := s.Status.LoadBalancer.Ingress
		return s.Name == "web" && len(in) == 1 && in[0].IP == "192.0.2.7" && *in[0].IPMode == corev1.LoadBalancerIPModeVIP
	})

	// The service account is made a moment after the namespace.
	until(t, "the service account", client.CoreV1().ServiceAccounts("default").Watch, func(_ watch.EventType, a *corev1.ServiceAccount) bool {
		return a.Name == "default"
	})
	must[*corev1.PersistentVolumeClaim](t)(client.CoreV1().PersistentVolumeClaims("default").Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
		},
	}, metav1.CreateOptions{}))
	began := time.Now()
	must[*corev1.Pod](t)(client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "user"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "none"}},
			Volumes:    []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}},
		},
	}, metav1.CreateOptions{}))
	until(t, "the pod's node", client.CoreV1().Pods("default").Watch, func(_ watch.EventType, p *corev1.Pod) bool {
		return p.Spec.NodeName == "n1"
	})
	t.Logf("a pod with a new claim was bound after %v", time.Since(began))
	claim := must[*corev1.PersistentVolumeClaim](t)(client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "data", metav1.GetOptions{}))
	folder := filepath.Join(cfg.LocalStoragePath, claim.Spec.VolumeName+"_default_data")
	if st, err := os.Stat(folder); err != nil || !st.IsDir() || claim.Status.Phase != corev1.ClaimBound {
		t.Errorf("claim %s, folder %v, %v", claim.Status.Phase, st, err)
	}

	now := int64(0)
	for _, err := range []error{
		client.CoreV1().Pods("default").Delete(ctx, "user", metav1.DeleteOptions{GracePeriodSeconds: &now}),
		client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, "data", metav1.DeleteOptions{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{}); err == nil {
		until(t, "the volume's end", client.CoreV1().PersistentVolumes().Watch, func(e watch.EventType, v *corev1.PersistentVolume) bool {
			return e == watch.Deleted && v.Name == claim.Spec.VolumeName
		})
	}
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder after its claim: %v", err)
	}
}
