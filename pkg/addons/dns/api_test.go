package dns

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// apiServer speaks as much of the API as informers need: lists, and watches
// that begin with the list.
type apiServer struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	objects  map[string][]map[string]any // by resource
	watchers map[string][]chan map[string]any
	asked    map[string]bool // "verb resource.group"
	waiting  map[string]chan struct{}
	refusals int      // how many requests are still to be refused
	refused  []string // the queries of those that were
}

func newAPIServer(t *testing.T, objects ...runtime.Object) *apiServer {
	a := &apiServer{
		t:        t,
		objects:  map[string][]map[string]any{},
		watchers: map[string][]chan map[string]any{},
		asked:    map[string]bool{},
		waiting:  map[string]chan struct{}{},
	}
	for _, o := range objects {
		a.add(o)
	}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

// askedFor is closed once the server has been asked for that.
func (a *apiServer) askedFor(what string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	done := make(chan struct{})
	if a.asked[what] {
		close(done)
	} else {
		a.waiting[what] = done
	}
	return done
}

func (a *apiServer) rest() (*rest.Config, error) { return &rest.Config{Host: a.URL}, nil }

// add stores o and tells those who watch its resource.
func (a *apiServer) add(o runtime.Object) {
	a.t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		a.t.Fatal(err)
	}
	u := unstructured.Unstructured{Object: m}
	resource := strings.ToLower(u.GetKind()) + "s"
	a.mu.Lock()
	defer a.mu.Unlock()
	u.SetResourceVersion(fmt.Sprint(len(a.objects[resource]) + 1))
	a.objects[resource] = append(a.objects[resource], m)
	for _, w := range a.watchers[resource] {
		w <- m
	}
}

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // api/v1/services, apis/group/v1/endpointslices
	resource, group := parts[len(parts)-1], ""
	apiVersion, _, _ := strings.Cut(strings.Join(parts[1:len(parts)-1], "/"), "/namespaces/")
	if parts[0] == "apis" {
		group = parts[1]
	}
	verb := "list"
	if r.URL.Query().Get("watch") != "" {
		verb = "watch"
	}

	a.mu.Lock()
	if a.refusals > 0 {
		a.refusals--
		a.refused = append(a.refused, r.URL.RawQuery)
		a.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden})
		return
	}
	a.asked[verb+" "+resource+"."+group] = true
	if wait := a.waiting[verb+" "+resource+"."+group]; wait != nil {
		close(wait)
		delete(a.waiting, verb+" "+resource+"."+group)
	}
	have := append([]map[string]any(nil), a.objects[resource]...)
	news := make(chan map[string]any, 100)
	if verb == "watch" {
		a.watchers[resource] = append(a.watchers[resource], news)
	}
	a.mu.Unlock()

	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	if verb == "list" {
		kind := map[string]string{"services": "Service", "namespaces": "Namespace", "endpointslices": "EndpointSlice", "pods": "Pod", "configmaps": "ConfigMap"}[resource]
		out.Encode(map[string]any{"apiVersion": apiVersion, "kind": kind + "List", "metadata": map[string]any{"resourceVersion": "100"}, "items": have})
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range have {
			out.Encode(map[string]any{"type": "ADDED", "object": o})
		}
		out.Encode(map[string]any{"type": "BOOKMARK", "object": a.bookmark(resource, apiVersion)})
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case o := <-news:
			out.Encode(map[string]any{"type": "ADDED", "object": o})
			w.(http.Flusher).Flush()
		}
	}
}

func (a *apiServer) bookmark(resource, apiVersion string) map[string]any {
	kind := map[string]string{"services": "Service", "namespaces": "Namespace", "endpointslices": "EndpointSlice", "pods": "Pod", "configmaps": "ConfigMap"}[resource]
	return map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{
		"resourceVersion": "100",
		"annotations":     map[string]any{metav1.InitialEventsAnnotationKey: "true"},
	}}
}
