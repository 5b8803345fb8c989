package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// apiServer is an API server to stand behind Kubernetes' own, with the kind
// Greeting in one group. It believes who the user is from nobody but the front
// proxy, which shows a certificate of the authority in ca.crt.
func apiServer(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 8443, "")
	dir := fs.String("dir", "/tls", "")
	group := fs.String("group", "example.org", "")
	proxy := fs.String("proxy", "system:auth-proxy", "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(*dir, "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("ca.crt holds no certificate")
	}
	g := &greetings{version: *group + "/v1", byPath: map[string]map[string]any{}}
	root := "/apis/" + g.version
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root, g.discover)
	mux.HandleFunc("GET "+root+"/namespaces/{ns}/greetings", g.list)
	mux.HandleFunc("POST "+root+"/namespaces/{ns}/greetings", g.create)
	mux.HandleFunc("GET "+root+"/namespaces/{ns}/greetings/{name}", g.get)
	mux.HandleFunc("DELETE "+root+"/namespaces/{ns}/greetings/{name}", g.remove)
	fromProxy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := r.TLS.PeerCertificates
		switch {
		case len(shown) == 0:
			fail(w, http.StatusUnauthorized, "Unauthorized", "show a certificate")
		case shown[0].Subject.CommonName != *proxy:
			fail(w, http.StatusUnauthorized, "Unauthorized", shown[0].Subject.CommonName+" is not the front proxy")
		default:
			mux.ServeHTTP(w, r)
		}
	})
	return serveTLS(ctx, *port, *dir, fromProxy, &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool})
}

// greetings are kept in memory.
type greetings struct {
	version string
	mu      sync.Mutex
	byPath  map[string]map[string]any // namespace/name
	rev     int
}

func (g *greetings) discover(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": g.version,
		"resources": []any{map[string]any{
			"name": "greetings", "singularName": "greeting", "namespaced": true, "kind": "Greeting",
			"verbs": []string{"create", "delete", "get", "list"},
		}},
	})
}

func (g *greetings) list(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(g.byPath)) {
		if filepath.Dir(path) == r.PathValue("ns") {
			items = append(items, g.byPath[path])
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"kind": "GreetingList", "apiVersion": g.version,
		"metadata": map[string]string{"resourceVersion": fmt.Sprint(g.rev)}, "items": items,
	})
}

// create keeps a greeting with whom it is from, as the front proxy says.
func (g *greetings) create(w http.ResponseWriter, r *http.Request) {
	var o struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil || o.Metadata.Name == "" {
		fail(w, http.StatusBadRequest, "BadRequest", fmt.Sprint("no named greeting: ", err))
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rev++
	made := map[string]any{
		"kind": "Greeting", "apiVersion": g.version,
		"metadata": map[string]string{"name": o.Metadata.Name, "namespace": r.PathValue("ns"), "resourceVersion": fmt.Sprint(g.rev)},
		"spec":     map[string]any{"from": r.Header.Get("X-Remote-User"), "groups": r.Header.Values("X-Remote-Group")},
	}
	g.byPath[filepath.Join(r.PathValue("ns"), o.Metadata.Name)] = made
	writeJSON(w, http.StatusCreated, made)
}

func (g *greetings) get(w http.ResponseWriter, r *http.Request)    { g.one(w, r, false) }
func (g *greetings) remove(w http.ResponseWriter, r *http.Request) { g.one(w, r, true) }

// one answers with a greeting, which may go at that.
func (g *greetings) one(w http.ResponseWriter, r *http.Request, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	path := filepath.Join(r.PathValue("ns"), r.PathValue("name"))
	o, ok := g.byPath[path]
	if !ok {
		fail(w, http.StatusNotFound, "NotFound", "there is no greeting "+path)
		return
	}
	if last {
		delete(g.byPath, path)
	}
	writeJSON(w, http.StatusOK, o)
}

// fail answers as Kubernetes does.
func fail(w http.ResponseWriter, code int, reason, message string) {
	writeJSON(w, code, map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
	})
}
