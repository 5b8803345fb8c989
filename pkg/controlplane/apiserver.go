package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/metrics/legacyregistry"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/encryption"
	"github.com/knarr-dev/knarr/pkg/part"
)

// APIServer opens the store and serves the Kubernetes API over it.
//
// It is ready when it answers requests and what every client relies on is in
// the store: namespaces, roles, priority classes, the default ServiceAccount.
// A port that is taken and a store that cannot be opened are found before any
// state of the process is touched, so that Run can simply be called again.
type APIServer struct {
	cfg Config
	log *slog.Logger
	// answering is closed when clients in this process can be authorized.
	answering chan struct{}
	once      sync.Once
}

var _ component.Component = (*APIServer)(nil)

// NewAPIServer returns the component; nothing happens until Run.
func NewAPIServer(cfg Config, log *slog.Logger) *APIServer {
	return &APIServer{cfg: cfg, log: log, answering: make(chan struct{})}
}

// Name implements component.Component.
func (a *APIServer) Name() string { return "apiserver" }

// Needs implements component.Component.
func (a *APIServer) Needs() []string { return []string{"pki"} }

// Answering is a component that is ready when the API server accepts
// connections and knows the roles in the store, a little before it calls itself
// ready: enough for the controllers, whose informers start to load meanwhile.
func (a *APIServer) Answering() component.Component {
	return component.Func("apiserver-tls", nil, func(ctx context.Context, ready chan<- struct{}) error {
		select {
		case <-ctx.Done():
			return nil
		case <-a.answering:
		}
		close(ready)
		<-ctx.Done()
		return nil
	})
}

// Run implements component.Component.
func (a *APIServer) Run(ctx context.Context, ready chan<- struct{}) error {
	c := a.cfg.Config
	addr := net.JoinHostPort(c.API.BindAddress.String(), strconv.Itoa(c.API.Port))
	// SO_REUSEADDR is Go's default; connections made now wait in the backlog
	// until the server accepts, so that no client has to try twice.
	lis, err := a.cfg.listen(ctx, addr)
	if err != nil {
		return fmt.Errorf("listen on %s (--https-listen-port): %w; end the program that holds the port, or choose another", addr, err)
	}
	defer lis.Close()

	if encryptsOurWay(c.ControlPlane.APIServerArgs) {
		if err := a.ensureEncryption(); err != nil {
			return err
		}
	}
	store, err := datastore.Open(ctx, datastore.Config{
		Path:        storePath(c),
		Synchronous: c.Store.Synchronous,
		Driver:      c.Store.Driver,
		Metrics:     legacyregistry.Registerer(),
		Seed:        func() ([]datastore.KeyValue, error) { return seed(a.cfg.PKI()) },
	})
	if err != nil {
		return err
	}
	defer store.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	own := newListener(lis)
	server, err := a.prepare(ctx, own, store)
	if err != nil {
		return err
	}
	go func() {
		for _, done := range append(server.authorizing, (<-chan struct{})(own.accepting)) {
			select {
			case <-done:
			case <-ctx.Done():
				return
			}
		}
		a.once.Do(func() { close(a.answering) })
	}()
	go func() {
		if waitReady(ctx, server) == nil {
			close(ready)
		}
	}()
	go func() {
		select {
		case <-store.Failed():
			cancel()
		case <-ctx.Done():
		}
	}()
	err = server.run(ctx)
	return errors.Join(store.Err(), err)
}

// preparedServer is an API server that is built but does not run.
type preparedServer struct {
	handler http.Handler
	// token is the API server's own, for who asks where nobody may without a name.
	token string
	run   func(context.Context) error
	// hooked is closed when our bootstrap hook has ended.
	hooked <-chan struct{}
	// authorizing are closed when roles and bindings are known.
	authorizing []<-chan struct{}
}

func (a *APIServer) prepare(ctx context.Context, lis *listener, store *datastore.Store) (*preparedServer, error) {
	making.apiServer.Lock()
	defer making.apiServer.Unlock()
	opts := options.NewServerRunOptions()
	if err := a.writeProfile(); err != nil {
		return nil, err
	}
	sets := opts.Flags()
	if err := parse(sets, "--kube-apiserver-arg", append(a.flags(), a.cfg.Config.APIServerProfile()...), a.cfg.Config.ControlPlane.APIServerArgs); err != nil {
		return nil, err
	}
	a.cfg.Settings.note("kube-apiserver", sets)
	keys := newTokenKeys(a.cfg.PKI, "")
	signByThem := useTokenKeys(opts, keys)
	opts.SecureServing.Listener = lis
	reach(&opts.Etcd.StorageConfig.Transport, store)
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates of apiserver: %w", err)
	}
	completed, err := opts.Complete(ctx)
	if err != nil {
		return nil, fmt.Errorf("complete options of apiserver: %w", err)
	}
	signByThem(&completed)
	if errs := completed.Validate(); len(errs) > 0 {
		return nil, fmt.Errorf("options of apiserver: %w", errors.Join(errs...))
	}
	cfg, err := newConfig(completed)
	if err != nil {
		return nil, fmt.Errorf("configure apiserver: %w", err)
	}

	// Each of these steps takes a tenth of a second or more and no context.
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	useOurWatchCaches(cfg)
	ways, err := useTunnels(cfg, a.cfg.Config.Network.NodeMask, a.log)
	if err != nil {
		return nil, err
	}
	generic := cfg.KubeAPIs.ControlPlane.Generic
	streams := a.streams(generic)
	generic.SkipOpenAPIInstallation = true // serveOpenAPI does it.
	// These two sleep a second and then write one object after the other. Ours
	// below does the same work at once.
	generic.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName,
		// Written every ten seconds for the good of other API servers, of which
		// there are none.
		"start-kube-apiserver-identity-lease-controller", "start-kube-apiserver-identity-lease-garbage-collector")
	if completed.PeerCAFile == "" {
		// Nor are there any that it could hand requests to. It writes as often.
		generic.DisabledPostStartHooks.Insert("peer-endpoint-reconciler-controller")
	}
	var reload *reloader
	if encryptsOurWay(a.cfg.Config.ControlPlane.APIServerArgs) {
		if reload, err = reloadEncryption(generic, a.cfg.Config.ServerDir(), a.log); err != nil {
			return nil, err
		}
	}
	hooked := make(chan struct{})
	err = generic.AddPostStartHook("knarr/bootstrap", func(h genericapiserver.PostStartHookContext) error {
		defer close(hooked)
		return bootstrap(h, h.LoopbackClientConfig, a.cfg.PKI())
	})
	if err != nil {
		return nil, fmt.Errorf("add bootstrap hook: %w", err)
	}

	complete, err := cfg.Complete()
	if err != nil {
		return nil, fmt.Errorf("complete configuration of apiserver: %w", err)
	}
	chain, err := app.CreateServerChain(complete)
	if err != nil {
		return nil, fmt.Errorf("create apiserver: %w", err)
	}
	ways.serve(chain.GenericAPIServer)
	for path, h := range a.cfg.Handlers {
		chain.GenericAPIServer.Handler.NonGoRestfulMux.Handle(path, h)
		chain.GenericAPIServer.Handler.NonGoRestfulMux.HandlePrefix(path+"/", h)
	}
	for path, h := range streams {
		chain.GenericAPIServer.Handler.NonGoRestfulMux.HandlePrefix(path, h)
	}
	h := chain.GenericAPIServer.Handler
	if a.cfg.Admit != nil {
		h.FullHandlerChain = a.cfg.Admit(h.FullHandlerChain)
	}
	h.FullHandlerChain = lis.count(h.FullHandlerChain)
	if err := a.extend(chain, cfg); err != nil {
		return nil, err
	}
	if err := serveOpenAPI(chain, generic.OpenAPIConfig, generic.OpenAPIV3Config, a.cfg.Config.ControlPlane.APIServerArgs); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	prepared, err := chain.PrepareRun()
	if err != nil {
		return nil, fmt.Errorf("prepare apiserver: %w", err)
	}
	if err := calmOpenAPI(ctx, chain, store); err != nil {
		return nil, err
	}
	rbac := cfg.KubeAPIs.ControlPlane.VersionedInformers.Rbac().V1()
	s := &preparedServer{handler: chain.GenericAPIServer.Handler, token: chain.GenericAPIServer.LoopbackClientConfig.BearerToken, hooked: hooked}
	s.run = func(ctx context.Context) error {
		defer ways.server.Close()
		if a.cfg.Follow != nil {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			go keys.publish(ctx, a.cfg.Follow)
		}
		if reload != nil {
			ctx, stop := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				reload.run(ctx)
			}()
			defer func() { stop(); <-ended }()
		}
		return prepared.Run(ctx)
	}
	for _, i := range []cache.SharedIndexInformer{
		rbac.ClusterRoles().Informer(), rbac.ClusterRoleBindings().Informer(), rbac.Roles().Informer(), rbac.RoleBindings().Informer(),
	} {
		s.authorizing = append(s.authorizing, i.HasSyncedChecker().Done())
	}
	return s, nil
}

// streams are those of other parts. They end by themselves, not by the API
// server's limit of a minute.
func (a *APIServer) streams(generic *genericapiserver.Config) map[string]http.Handler {
	if a.cfg.Streams == nil {
		return nil
	}
	streams := a.cfg.Streams()
	long := generic.LongRunningFunc
	generic.LongRunningFunc = func(r *http.Request, info *apirequest.RequestInfo) bool {
		for path := range streams {
			if strings.HasPrefix(r.URL.Path, path) {
				return true
			}
		}
		return long(r, info)
	}
	return streams
}

// extend adds the API groups of others, before what describes all groups is made.
func (a *APIServer) extend(chain *aggregatorapiserver.APIAggregator, cfg *app.Config) error {
	if a.cfg.Extend == nil {
		return nil
	}
	kube, err := kubeAPIServer(chain)
	if err != nil {
		return err
	}
	kubelets, err := kubeletclient.MakeTransport(&cfg.KubeAPIs.Extra.KubeletClientConfig)
	if err != nil {
		return fmt.Errorf("make the transport to kubelets: %w", err)
	}
	return a.cfg.Extend(part.API{Server: kube, Informers: cfg.KubeAPIs.ControlPlane.VersionedInformers, Kubelets: kubelets})
}

// flags are the API server's settings; the user's own come after them.
func (a *APIServer) flags() []string {
	c, p := a.cfg.Config, a.cfg.PKI()
	flags := []string{
		"advertise-address=" + c.API.AdvertiseAddress.String(),
		"allow-privileged=true",
		"api-audiences=https://kubernetes.default.svc." + c.Network.ClusterDomain + ",knarr",
		"authorization-mode=Node,RBAC",
		"bind-address=" + c.API.BindAddress.String(),
		"cert-dir=" + a.cfg.Dir,
		"client-ca-file=" + p.ClientCA.TrustPath,
		"enable-admission-plugins=NodeRestriction",
		"enable-aggregator-routing=true",
		"enable-bootstrap-token-auth=true",
		// One server writes its address once. The lease reconciler would write
		// every ten seconds.
		"endpoint-reconciler-type=master-count",
		// Never dialled: the store is reached in memory. It compacts itself.
		"etcd-servers=http://127.0.0.1:2379",
		"etcd-compaction-interval=0",
		"etcd-count-metric-poll-period=0",
		"etcd-db-metric-poll-interval=0",
		"kubelet-certificate-authority=" + p.ServerCA.TrustPath,
		"kubelet-client-certificate=" + p.APIServerToKubelet.Path,
		"kubelet-client-key=" + p.APIServerToKubelet.Path,
		"kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"profiling=false",
		"proxy-client-cert-file=" + p.FrontProxy.Path,
		"proxy-client-key-file=" + p.FrontProxy.Path,
		"requestheader-allowed-names=system:auth-proxy",
		"requestheader-client-ca-file=" + p.RequestHeaderCA.TrustPath,
		"requestheader-extra-headers-prefix=X-Remote-Extra-",
		"requestheader-group-headers=X-Remote-Group",
		"requestheader-username-headers=X-Remote-User",
		"secure-port=" + strconv.Itoa(c.API.Port),
		"service-account-issuer=https://kubernetes.default.svc." + c.Network.ClusterDomain,
		"service-account-key-file=" + p.ServiceAccount.Path,
		"service-account-signing-key-file=" + p.ServiceAccount.Path,
		"service-cluster-ip-range=" + c.Network.ServiceCIDR.String(),
		"service-node-port-range=" + c.Network.NodePortRange,
		// Open watches would hold a stop for half a minute.
		"shutdown-send-retry-after=true",
		"tls-cert-file=" + p.APIServer.Path,
		// Of TLS 1.2; those of 1.3 are all strong.
		"tls-cipher-suites=" + strings.Join(config.StrongCiphers(), ","),
		"tls-private-key-file=" + p.APIServer.Path,
	}
	if encryptsOurWay(c.ControlPlane.APIServerArgs) {
		flags = append(flags, encryptionFlag+"="+encryption.Path(c.ServerDir()), encryptionFlag+"-automatic-reload=true")
	}
	return flags
}

// ensureEncryption has a new cluster's Secrets encrypted, if the configuration says
// so, and changes nothing for one that exists.
func (a *APIServer) ensureEncryption() error {
	c := a.cfg.Config
	_, err := os.Stat(storePath(c))
	isNew := errors.Is(err, fs.ErrNotExist)
	return encryption.Ensure(encryption.Path(c.ServerDir()), isNew && c.Store.SecretsEncryption.Enabled())
}

func storePath(c *config.Config) string { return filepath.Join(c.ServerDir(), "db", "state.db") }

// waitReady returns once /readyz answers ok. Upstream tells no other way that
// all its hooks have ended, so that this asks, in memory, until it does.
func waitReady(ctx context.Context, s *preparedServer) error {
	select {
	case <-s.hooked:
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		w := httptest.NewRecorder()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz", nil)
		if err != nil {
			return err
		}
		req.RemoteAddr = "127.0.0.1:0"
		req.Header.Set("Authorization", "Bearer "+s.token)
		s.handler.ServeHTTP(w, req)
		if w.Code == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
