package part

import (
	"net/http"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
)

// API is an API server while it is made: what serves an API group of its own in
// it may use these.
type API struct {
	// Server takes API groups.
	Server *genericapiserver.GenericAPIServer
	// Informers are the API server's own. They run once it does.
	Informers informers.SharedInformerFactory
	// Kubelets reaches them as the API server does: by its credential, and through
	// tunnels where there is no other way.
	Kubelets http.RoundTripper
}

// Extend has an API server serve more, each time that one is made. It is called
// by Part.Components.
func (e *Env) Extend(install func(API) error) { e.extensions = append(e.extensions, install) }

// InstallExtensions is called by what makes an API server.
func (e *Env) InstallExtensions(api API) error {
	for _, install := range e.extensions {
		if err := install(api); err != nil {
			return err
		}
	}
	return nil
}
