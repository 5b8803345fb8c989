package knarrtest

import (
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/seed"
)

func TestMain(m *testing.M) {
	os.Exit(Main(m, CRDs("testdata/crds"), Objects("testdata/objects"), Webhooks("testdata/webhooks")))
}

var ships = schema.GroupVersionResource{Group: "knarr.dev", Version: "v1", Resource: "ships"}

func TestSharedControlPlaneHasItsCRDsAndObjects(t *testing.T) {
	c := Shared(t)
	if Shared(t) != c {
		t.Error("it is not shared")
	}
	dyn, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	ship, err := dyn.Resource(ships).Namespace("default").Get(t.Context(), "skuldelev", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if oars, _, _ := unstructured.NestedInt64(ship.Object, "spec", "oars"); oars != 6 {
		t.Errorf("%+v", ship)
	}
	// The same by a kubeconfig's file.
	access, err := clientcmd.BuildConfigFromFlags("", c.KubeconfigPath())
	if err != nil || access.Host != c.RESTConfig().Host {
		t.Errorf("%v, %+v", err, access)
	}
}

func TestEachTestHasANamespaceOfItsOwn(t *testing.T) {
	c := Shared(t)
	client := c.Client(t)
	names := map[string]bool{}
	var last string
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			last = c.Namespace(t)
			names[last] = true
			// A pod can be made at once. There is no node, so it waits.
			pod, err := client.CoreV1().Pods(last).Create(t.Context(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "p"},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "knarr.dev/test:1"}}},
			}, metav1.CreateOptions{})
			if err != nil || pod.Status.Phase != corev1.PodPending {
				t.Errorf("%v, %+v", err, pod)
			}
		})
	}
	if len(names) != 2 {
		t.Errorf("%v", names)
	}
	w, err := client.CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + last})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == "DELETED" {
			return
		}
		if ns := e.Object.(*corev1.Namespace); ns.DeletionTimestamp.IsZero() {
			t.Fatalf("the namespace of a test that has ended is %+v", ns)
		}
	}
}

func TestAUserMayDoWhatRBACAllows(t *testing.T) {
	c := Shared(t)
	leif, err := kubernetes.NewForConfig(c.As("leif"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leif.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("%v", err)
	}
	admins, err := kubernetes.NewForConfig(c.As("leif", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admins.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// TestTheAPIServerCallsTheTestsWebhooks: the manifest names a Service, and the test
// answers.
func TestTheAPIServerCallsTheTestsWebhooks(t *testing.T) {
	c := Shared(t)
	lis, err := net.Listen("tcp", net.JoinHostPort(c.Webhook.Host, strconv.Itoa(c.Webhook.Port)))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.Webhook.CertDir, "tls.crt"), filepath.Join(c.Webhook.CertDir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || r.URL.Path != "/validate-ships" {
			http.Error(w, r.URL.Path, http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Result: &metav1.Status{Message: "no keel", Code: http.StatusForbidden}}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review) // the API server tells what went wrong
	})}
	defer server.Close()
	go func() { _ = server.Serve(tls.NewListener(lis, &tls.Config{Certificates: []tls.Certificate{cert}})) }()
	dyn, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	// The API server hears of the webhook a moment after it was installed; until then
	// it lets ships pass.
	for i := 0; ; i++ {
		ship := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "knarr.dev/v1", "kind": "Ship", "metadata": map[string]any{"name": "raft-" + strconv.Itoa(i)}}}
		_, err := dyn.Resource(ships).Namespace(c.Namespace(t)).Create(t.Context(), ship, metav1.CreateOptions{})
		if err == nil && i < 200 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "no keel") {
			t.Fatalf("after %d ships: %v", i, err)
		}
		return
	}
}

// TestOptionsReachTheControlPlane: beside the shared one, in the same process.
func TestOptionsReachTheControlPlane(t *testing.T) {
	began := time.Now()
	c := Start(t, WithoutAdmissionPlugins("ServiceAccount"), AdmissionPlugins("AlwaysPullImages"), ControllerManagerArgs("concurrent-deployment-syncs=1"), SchedulerArgs("v=0"))
	t.Logf("started in %s", time.Since(began).Round(time.Millisecond))
	client := c.Client(t)
	pod, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "knarr.dev/test:1", ImagePullPolicy: corev1.PullNever}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways || pod.Spec.ServiceAccountName != "" {
		t.Errorf("%+v", pod.Spec)
	}
}

func TestAWrongArgumentEndsTheStart(t *testing.T) {
	for want, opt := range map[string]Option{
		"list of known controllers": ControllerManagerArgs("controllers=-*"),
		"no flag \"etcd-server\"":   APIServerArgs("etcd-server=x"),
	} {
		if c, err := start(t.Context(), []Option{opt}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
			if err == nil {
				c.close()
			}
		}
	}
}

func TestMistakesInManifestsAreToldBeforeAnythingStarts(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		opt  Option
		want string
	}{
		"no such folder": {CRDs(filepath.Join(dir, "none")), "no such file"},
		"no YAML":        {CRDs(file("a.yaml", "a: [")), "a.yaml"},
		"no kind":        {Objects(file("b.yaml", "metadata: {name: x}")), "it has no kind"},
		"no name":        {Objects(file("c.yaml", "apiVersion: v1\nkind: Pod")), "Pod has no metadata.name"},
		"no CRD":         {CRDs(file("d.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}")), "has no CustomResourceDefinition"},
	} {
		if _, err := start(t.Context(), []Option{c.opt}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyTheTestsOwnLogLinesAreKept(t *testing.T) {
	for function, want := range map[string]bool{
		"k8s.io/apiserver/pkg/server.(*GenericAPIServer).PrepareRun":   true,
		"k8s.io/client-go/tools/cache.(*Reflector).ListAndWatch":       true,
		"example.org/operator/controllers.(*Reconciler).Reconcile":     false,
		"sigs.k8s.io/controller-runtime/pkg/manager.(*runnable).Start": false,
		"k8s.io/sample-controller/pkg/controller.(*Controller).handle": false,
		"": false,
	} {
		if isUpstream(function) != want {
			t.Errorf("%q", function)
		}
	}
}

func TestNodeIsSkippedWithTheReason(t *testing.T) {
	if os.Geteuid() == 0 {
		if _, err := (nodeOptions{exe: filepath.Join(t.TempDir(), "none")}).find(); err == nil {
			t.Error("it runs what is not there")
		}
		return
	}
	if _, err := (nodeOptions{}).find(); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("%v", err)
	}
}

func TestASeedIsWhereATestBegins(t *testing.T) {
	dir := t.TempDir()
	c, err := cluster.New(cluster.Config{DataDir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-c.Ready()
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "prepared"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seed.knarr")
	if err := seed.Save(t.Context(), seed.Source{Name: "prepared", DataDir: dir}, t.TempDir(), file); err != nil {
		t.Fatal(err)
	}
	begun := Start(t, Seed(file))
	if _, err := begun.Client(t).CoreV1().ConfigMaps("default").Get(t.Context(), "prepared", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := start(t.Context(), []Option{Seed(filepath.Join(dir, "kubeconfig.yaml"))}); err == nil || !strings.Contains(err.Error(), "it is not a cluster") {
		t.Errorf("with a file that is none: %v", err)
	}
}
