// Package part is what the control plane and what runs beside it know of each
// other: a part lists its components, and is told how to reach the API.
package part

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/pki"
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
	// Host is the URL at which clients in this process reach the API server.
	Host string

	pki   atomic.Pointer[pki.PKI]
	group atomic.Pointer[component.Group]
}

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

// SetPKI is called by the component pki, before it is ready.
func (e *Env) SetPKI(p *pki.PKI) { e.pki.Store(p) }

// PKI returns the certificates, once the component pki is ready.
func (e *Env) PKI() *pki.PKI { return e.pki.Load() }

// RESTConfig returns a client configuration with the certificate that pick
// chooses, once the component pki is ready.
func (e *Env) RESTConfig(pick func(*pki.PKI) *pki.Leaf) *rest.Config {
	p := e.PKI()
	c := p.RESTConfig(pick(p), e.Host)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.UserAgent = "knarr/" + version.Get().Knarr
	// The server's own priority and fairness protects it better.
	c.QPS = -1
	return c
}

// Client returns a client for Knarr's own controllers, once pki is ready.
func (e *Env) Client() (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(e.RESTConfig(func(p *pki.PKI) *pki.Leaf { return p.Knarr }))
}

// Trim takes from an object what no informer of ours reads.
func Trim(obj any) (any, error) {
	if a, err := meta.Accessor(obj); err == nil && a.GetManagedFields() != nil {
		a.SetManagedFields(nil)
	}
	return obj, nil
}
