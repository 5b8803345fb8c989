package controlplane

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/emicklei/go-restful/v3"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/component-base/version"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
)

const (
	openAPIv2 = "/openapi/v2"
	openAPIv3 = "/openapi/v3"
)

// serveOpenAPI has the API server describe its built-in resources when it is
// asked to. Upstream builds and marshals all descriptions while it starts: a
// fifth of the start's work and 40 MiB for documents of which a client like
// kubectl reads one or two, and most clients none. It must be called between
// the making of the chain, with KubeAPIs' own OpenAPI skipped, and PrepareRun.
//
// args are what the user set of the API server: with the version they decide
// what the descriptions say.
func serveOpenAPI(chain *aggregatorapiserver.APIAggregator, v2 *common.Config, v3 *common.OpenAPIV3Config, args []string) error {
	kube, err := kubeAPIServer(chain)
	if err != nil {
		return err
	}
	services := kube.Handler.GoRestfulContainer.RegisteredWebServices
	to := kube.Handler.NonGoRestfulMux
	to.Handle(openAPIv2, lazyV2(services, v2))
	index, err := newLazyV3(services(), v3, args)
	if err != nil {
		return err
	}
	to.Handle(openAPIv3, http.HandlerFunc(index.serveIndex))
	to.HandlePrefix(openAPIv3+"/", http.HandlerFunc(index.serveGroupVersion))
	return nil
}

// kubeAPIServer is what serves the built-in resources, in the middle of the chain.
func kubeAPIServer(chain *aggregatorapiserver.APIAggregator) (*genericapiserver.GenericAPIServer, error) {
	kube, ok := chain.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok {
		return nil, errors.New("find kube-apiserver behind the aggregator: upstream's chain has changed; adapt pkg/controlplane/openapilazy.go")
	}
	return kube, nil
}

// lazyV2 builds the one OpenAPI v2 document at the first request.
func lazyV2(services func() []*restful.WebService, cfg *common.Config) http.Handler {
	build := sync.OnceValues(func() (http.Handler, error) {
		swagger, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services()), cfg)
		if err != nil {
			return nil, fmt.Errorf("describe the API as OpenAPI v2: %w", err)
		}
		swagger.Definitions = handler.PruneDefaults(swagger.Definitions)
		m := mux.NewPathRecorderMux("openapi-v2")
		handler.NewOpenAPIService(swagger).RegisterOpenAPIVersionedService(openAPIv2, m)
		return m, nil
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, err := build()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// lazyV3 serves an index of group versions, whose documents are built when one
// is read (KEP-2896). Upstream's index has a hash of each document, which all
// documents have to be built for; here the hash is of what a document is made
// from, so that clients can keep them for ever as well.
type lazyV3 struct {
	index  []byte
	etag   string
	groups map[string]lazyV3Group
}

type lazyV3Group struct {
	url     string
	hash    string
	service func() *handler3.OpenAPIService
}

func newLazyV3(services []*restful.WebService, cfg *common.OpenAPIV3Config, args []string) (*lazyV3, error) {
	l := &lazyV3{groups: map[string]lazyV3Group{}}
	discovery := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for _, ws := range services {
		gv := strings.TrimPrefix(ws.RootPath(), "/")
		g := lazyV3Group{
			hash: hashOfService(ws, args),
			service: sync.OnceValue(func() *handler3.OpenAPIService {
				one := restful.NewContainer().Add(ws)
				return routes.OpenAPI{V3Config: cfg}.InstallV3(one, mux.NewPathRecorderMux("openapi-v3"))
			}),
		}
		g.url = (&url.URL{Path: openAPIv3 + "/" + gv, RawQuery: url.Values{"hash": {g.hash}}.Encode()}).String()
		l.groups[gv] = g
		discovery.Paths[gv] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: g.url}
	}
	var err error
	if l.index, err = json.Marshal(discovery); err != nil {
		return nil, fmt.Errorf("make the index of OpenAPI v3: %w", err)
	}
	l.etag = fmt.Sprintf("%X", sha512.Sum512(l.index))
	return l, nil
}

// hashOfService identifies what a service's document says: its routes, and the
// program and settings that the types come from.
func hashOfService(ws *restful.WebService, args []string) string {
	h := sha512.New()
	fmt.Fprintf(h, "%#v\n%q\n%s\n", version.Get(), args, ws.RootPath())
	for _, r := range ws.Routes() {
		fmt.Fprintf(h, "%s %s %s\n", r.Method, r.Path, r.Operation)
	}
	return fmt.Sprintf("%X", h.Sum(nil))
}

func (l *lazyV3) serveIndex(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"`+l.etag+`"`)
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, openAPIv3, time.Time{}, bytes.NewReader(l.index))
}

func (l *lazyV3) serveGroupVersion(w http.ResponseWriter, r *http.Request) {
	g, ok := l.groups[strings.TrimPrefix(r.URL.Path, openAPIv3+"/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	switch r.URL.Query().Get("hash") {
	case "":
	case g.hash:
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
		// Upstream's service knows the document by another hash.
		r = r.Clone(r.Context())
		r.URL.RawQuery = ""
	default:
		http.Redirect(w, r, g.url, http.StatusMovedPermanently)
		return
	}
	g.service().HandleGroupVersion(w, r)
}
