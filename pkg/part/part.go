// Package part is what the control plane and what runs beside it know of each
// other: a part lists its components, and is told how to reach the API.
package part

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/version"
)

// Part is a group of components that is added to a control plane: the node,
// the add-ons.
type Part interface {
	// Components lists the part's components. Nothing may start before Run.
	Components(env *Env) ([]component.Spec, error)
}

// Env is what a part may use.
type Env struct {
	// CSI is held while a user of upstream's CSI plugin is made, of which only one can
	// be in a process.
	CSI    sync.Mutex
	Config *config.Config
	Log    *slog.Logger
	// Answering and Serving name the components that are ready when clients of this
	// process may ask the API server, and when it calls itself ready.
	Answering, Serving string

	handlers   map[string]http.Handler
	local      map[string]http.HandlerFunc
	extensions []func(API) error
	troubles   []func() []status.Trouble

	access atomic.Pointer[Access]
	group  atomic.Pointer[component.Group]
}

// Role is in whose name a client asks the API server. On an agent all of them are
// the node.
type Role int

const (
	// Knarr is Knarr's own controllers: an administrator on a server.
	Knarr Role = iota
	Kubelet
	KubeProxy
	DNS
)

// Access is how this machine reaches the API server, and how it serves.
type Access struct {
	// REST returns a client's address and credential, no more. What it returns
	// belongs to the caller.
	REST func(Role) *rest.Config
	// ClientCA is the file of the authority of those who may ask the kubelet.
	ClientCA string
	// KubeletServing is the file, certificate and key, that the kubelet serves
	// with; empty if it shall ask the cluster for one.
	KubeletServing string
	// NodeCertificate returns the certificate by which this machine is a node.
	NodeCertificate func() (*tls.Certificate, error)
}

// Handle has the API server, where there is one in this process, serve what is
// below a path that ends in a slash, to whom its authorization allows it. Answers
// may take any time. Parts call it in Components.
func (e *Env) Handle(path string, h http.Handler) {
	if e.handlers == nil {
		e.handlers = map[string]http.Handler{}
	}
	e.handlers[path] = h
}

// HandleLocal has the status socket, which is root's alone, answer a pattern of
// http.ServeMux. Parts call it in Components.
func (e *Env) HandleLocal(pattern string, h http.HandlerFunc) {
	if e.local == nil {
		e.local = map[string]http.HandlerFunc{}
	}
	e.local[pattern] = h
}

// Local are the handlers of the status socket, by pattern.
func (e *Env) Local() map[string]http.HandlerFunc { return e.local }

// Handlers are those of all parts, by path.
func (e *Env) Handlers() map[string]http.Handler { return e.handlers }

// SetGroup is called before anything starts.
func (e *Env) SetGroup(g *component.Group) { e.group.Store(g) }

// WaitFailed waits until a component's attempt to run has failed once. It
// returns an error when ctx ends first, as it does for a component that there
// is none of.
func (e *Env) WaitFailed(ctx context.Context, name string) error {
	g := e.group.Load()
	for {
		changed := g.Changed()
		if slices.ContainsFunc(g.Status(), func(s component.Status) bool { return s.Name == name && s.LastError != "" }) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TellTroubles has a part's troubles shown by `knarr status`. It is called by
// Part.Components; f may be called at any time.
func (e *Env) TellTroubles(f func() []status.Trouble) { e.troubles = append(e.troubles, f) }

// Troubles are those of all parts.
func (e *Env) Troubles() []status.Trouble {
	var all []status.Trouble
	for _, f := range e.troubles {
		all = append(all, f()...)
	}
	return all
}

// SetAccess is called by the component pki, before it is ready.
func (e *Env) SetAccess(a Access) { e.access.Store(&a) }

// Access is known once the component pki is ready.
func (e *Env) Access() Access { return *e.access.Load() }

// RESTConfig returns a client configuration, once the component pki is ready.
func (e *Env) RESTConfig(r Role) *rest.Config {
	c := e.Access().REST(r)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.UserAgent = "knarr/" + version.Get().Knarr
	// The server's own priority and fairness protects it better.
	c.QPS = -1
	return c
}

// Client returns a client for Knarr's own controllers, once pki is ready.
func (e *Env) Client() (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(e.RESTConfig(Knarr))
}

// Trim takes from an object what no informer of ours reads.
func Trim(obj any) (any, error) {
	if a, err := meta.Accessor(obj); err == nil && a.GetManagedFields() != nil {
		a.SetManagedFields(nil)
	}
	return obj, nil
}
