package servicelb

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

// begin runs a controller against a fake API server.
func begin(t *testing.T, client kubernetes.Interface, cfg Config) {
	t.Helper()
	cfg.Client = func() (kubernetes.Interface, error) { return client, nil }
	ctx, stop := context.WithCancel(t.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() { ended <- New(cfg).Run(ctx, ready) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(within):
		t.Fatal("not ready")
	}
}

// await watches a Service until its addresses are as wanted.
func await(t *testing.T, client kubernetes.Interface, name, want string) {
	t.Helper()
	// A watch begun before the look misses nothing.
	w, err := client.CoreV1().Services("ns").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	s, err := client.CoreV1().Services("ns").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	timeout := time.After(within)
	for {
		var got []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			got = append(got, in.IP)
		}
		if strings.Join(got, " ") == want {
			return
		}
		select {
		case e := <-w.ResultChan():
			if now, ok := e.Object.(*corev1.Service); ok && now.Name == name && e.Type != watch.Deleted {
				s = now
			}
		case <-timeout:
			t.Fatalf("Service %s has %q, want %q", name, got, want)
		}
	}
}

func TestControllerFollowsServicesNodesAndEndpoints(t *testing.T) {
	other := "example.org/lb"
	client := fake.NewClientset(node("a", "192.0.2.1"), node("b", "192.0.2.2"),
		service("web", 1, 80, func(s *corev1.Service) { s.UID = "web" }),
		service("foreign", 0, 80, has("198.51.100.1"), func(s *corev1.Service) { s.UID, s.Spec.LoadBalancerClass = "foreign", &other }))
	ctx := t.Context()
	begin(t, client, Config{})
	await(t, client, "web", "192.0.2.1 192.0.2.2")
	await(t, client, "foreign", "198.51.100.1")

	broken := node("a", "192.0.2.1", notReady)
	if _, err := client.CoreV1().Nodes().Update(ctx, broken, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, client, "web", "192.0.2.2")

	// Two want one port: the younger waits until the older one goes.
	if _, err := client.CoreV1().Services("ns").Create(ctx, service("late", 2, 80, func(s *corev1.Service) { s.UID = "late" }), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	complaint(t, client, "late", "PortConflict", "Service ns/web has it")
	if err := client.CoreV1().Services("ns").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, client, "late", "192.0.2.2")

	if _, err := client.CoreV1().Services("ns").Create(ctx, service("near", 3, 81, local, func(s *corev1.Service) { s.UID = "near" }), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "near-1", Labels: map[string]string{discoveryv1.LabelServiceName: "near"}},
		Endpoints:  []discoveryv1.Endpoint{{NodeName: new("b"), Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
	}
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, client, "near", "192.0.2.2")
	slice = slice.DeepCopy()
	slice.Endpoints[0].Conditions.Ready = new(false)
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, client, "near", "")
}

// complaint waits for an event.
func complaint(t *testing.T, client kubernetes.Interface, service, reason, words string) {
	t.Helper()
	w, err := client.CoreV1().Events("ns").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	seen, err := client.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	is := func(e *corev1.Event) bool {
		return e.InvolvedObject.Name == service && e.Reason == reason && strings.Contains(e.Message, words) && e.Type == corev1.EventTypeWarning
	}
	for i := range seen.Items {
		if is(&seen.Items[i]) {
			return
		}
	}
	timeout := time.After(within)
	for {
		select {
		case e := <-w.ResultChan():
			if got, ok := e.Object.(*corev1.Event); ok && is(got) {
				return
			}
		case <-timeout:
			t.Fatalf("no event %s with %q of %s", reason, words, service)
		}
	}
}

func TestAgentTellsWhichOfTheWantedPortsAreTaken(t *testing.T) {
	client := fake.NewClientset(node("a", "192.0.2.1", func(n *corev1.Node) { n.Annotations = map[string]string{TakenAnnotation: "1/TCP"} }))
	nodes, err := client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer nodes.Stop()
	a := NewAgent(AgentConfig{Node: "a", Report: true, Client: func() (kubernetes.Interface, error) { return client, nil }})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx, make(chan struct{})) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for timeout := time.After(within); ; {
		select {
		case e := <-nodes.ResultChan():
			if n := e.Object.(*corev1.Node); n.Annotations[TakenAnnotation] == "" {
				return
			}
		case <-timeout:
			t.Fatal("the annotation of a run before stays")
		}
	}
}
