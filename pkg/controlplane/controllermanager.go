package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // a CronJob may name a time zone, and small machines have no files of them

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/keyutil"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/controller-manager/controller"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmconfig "k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// ControllerManager runs every default controller of Kubernetes but csrapproving,
// with tokencleaner and bootstrapsigner as well.
//
// It is put together from upstream's exported parts and not by app.Run, which
// asks an API server that does not answer yet once a second and gives up for
// good after ten, too soon for a slow board, and which can run only once in a
// process.
type ControllerManager struct {
	cfg Config
}

var _ component.Component = (*ControllerManager)(nil)

// NewControllerManager returns the component; nothing happens until Run.
func NewControllerManager(cfg Config) *ControllerManager {
	return &ControllerManager{cfg: cfg}
}

// Name implements component.Component.
func (m *ControllerManager) Name() string { return "controller-manager" }

// Needs implements component.Component.
func (m *ControllerManager) Needs() []string { return []string{"apiserver-tls"} }

// Run implements component.Component. It is ready when every controller runs.
func (m *ControllerManager) Run(ctx context.Context, ready chan<- struct{}) error {
	opts, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("make options of controller-manager: %w", err)
	}
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	kubeconfig := filepath.Join(m.cfg.Dir, "controller-manager.kubeconfig")
	if err := pki.WriteKubeconfig(kubeconfig, m.cfg.PKI().Kubeconfig(m.cfg.PKI().ControllerManager, m.cfg.Host()), 0o600, -1); err != nil {
		return err
	}
	args := append(m.flags(), "kubeconfig="+kubeconfig)
	sets := opts.Flags(known, disabled, aliases)
	args = append(args, m.cfg.Config.ControllerManagerProfile()...)
	if err := parse(sets, "--kube-controller-manager-arg", args, m.cfg.Config.ControlPlane.ControllerManagerArgs); err != nil {
		return err
	}
	m.cfg.Settings.note("kube-controller-manager", sets)
	// Losing the lease would end the process, and there is nobody to take it.
	opts.Generic.LeaderElection.LeaderElect = false
	cfg, err := opts.Config(ctx, known, disabled, aliases)
	if err != nil {
		return fmt.Errorf("configure controller-manager: %w", err)
	}
	anonymous := rest.AnonymousClientConfig(cfg.Kubeconfig)
	if opts.Generic.ClientConnection.Kubeconfig == kubeconfig {
		if err := useAccess(cfg, m.cfg.Access(pki.ControllerManager)); err != nil {
			return err
		}
	}
	c := cfg.Complete()

	c.EventBroadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.Client.CoreV1().Events("")})
	defer c.EventBroadcaster.Shutdown()

	root := clientbuilder.SimpleControllerClientBuilder{ClientConfig: c.Kubeconfig}
	var client clientbuilder.ControllerClientBuilder = root
	if c.ComponentConfig.KubeCloudShared.UseServiceAccountCredentials {
		client = clientbuilder.NewDynamicClientBuilder(anonymous, c.Client.CoreV1(), "kube-system")
	}
	cc, err := newControllerContext(ctx, c, root, client)
	if err != nil {
		return fmt.Errorf("prepare controllers: %w", err)
	}
	tokens, err := m.newTokenController(ctx, c, cc, root)
	if err != nil {
		return fmt.Errorf("prepare controller %s: %w", names.ServiceAccountTokenController, err)
	}
	descriptors := app.NewControllerDescriptors()
	delete(descriptors, names.ServiceAccountTokenController)

	ctx, stop := context.WithCancel(ctx)
	running := newRunning(ctx, c.ComponentConfig.Generic.ControllerStartInterval.Duration)
	defer cc.InformerFactory.Shutdown()
	defer stop()
	running.start(tokens)
	for _, group := range []map[string]*app.ControllerDescriptor{take(descriptors, firstControllers()), descriptors} {
		controllers, err := build(ctx, cc, group, m.cfg.CSI)
		if err != nil {
			stop()
			return errors.Join(fmt.Errorf("build controllers: %w", err), running.wait(controllersStopTime))
		}
		cc.InformerFactory.Start(ctx.Done())
		cc.ObjectOrMetadataInformerFactory.Start(ctx.Done())
		running.start(controllers...)
	}
	close(cc.InformersStarted)
	close(ready)
	return running.wait(controllersStopTime)
}

// firstControllers are those without which the first node has no subnet and keeps
// the taint of one that is not ready, and a new namespace has nothing that its pods
// mount. To build all takes most of a second.
func firstControllers() []string {
	return []string{names.NodeIpamController, names.NodeLifecycleController, names.ServiceAccountController, names.RootCACertificatePublisherController}
}

// take moves some out of all.
func take(all map[string]*app.ControllerDescriptor, some []string) map[string]*app.ControllerDescriptor {
	taken := map[string]*app.ControllerDescriptor{}
	for _, name := range some {
		if d, ok := all[name]; ok {
			taken[name] = d
			delete(all, name)
		}
	}
	return taken
}

// useAccess has the controllers reach the API server in a way that outlives the
// certificate in the kubeconfig file.
func useAccess(cfg *kcmconfig.Config, access *rest.Config) error {
	cfg.Kubeconfig = withAccess(cfg.Kubeconfig, access)
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(cfg.Kubeconfig), options.KubeControllerManagerUserAgent))
	if err != nil {
		return fmt.Errorf("create client of controller-manager: %w", err)
	}
	cfg.Client = client
	return nil
}

// withAccess is a client configuration of upstream's with another way to the API
// server.
func withAccess(cfg, access *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Host, cfg.Transport, cfg.TLSClientConfig = access.Host, access.Transport, rest.TLSClientConfig{}
	return cfg
}

// controllersStopTime is how long controllers have to end. They take some
// milliseconds, as long as the API server answers.
const controllersStopTime = 3 * time.Second

// running are controllers that run until ctx ends.
type running struct {
	ctx      context.Context
	interval time.Duration // over which about starts are spread
	wg       sync.WaitGroup

	mu    sync.Mutex
	names map[string]bool
}

func newRunning(ctx context.Context, interval time.Duration) *running {
	return &running{ctx: ctx, interval: interval, names: map[string]bool{}}
}

func (r *running) start(controllers ...app.Controller) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range controllers {
		r.names[c.Name()] = true
		r.wg.Go(func() {
			select {
			case <-time.After(wait.Jitter(r.interval, app.ControllerStartJitter)):
				c.Run(r.ctx)
			case <-r.ctx.Done():
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.names, c.Name())
		})
	}
}

// wait returns when ctx has ended, and all controllers or the time that they have
// for it. Its error names those that did not end in time, which upstream's
// counterpart only logs.
func (r *running) wait(limit time.Duration) error {
	<-r.ctx.Done()
	ended := make(chan struct{})
	go func() {
		r.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(limit):
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Errorf("controllers that did not stop within %s: %s", limit, strings.Join(slices.Sorted(maps.Keys(r.names)), ", "))
}

func (m *ControllerManager) flags() []string {
	c, p := m.cfg.Config, m.cfg.PKI()
	args := []string{
		"allocate-node-cidrs=true",
		"cluster-cidr=" + c.Network.ClusterCIDR.String(),
		"service-cluster-ip-range=" + c.Network.ServiceCIDR.String(),
		// Package membership approves and denies in its place.
		"controllers=*,bootstrap-signer-controller,token-cleaner-controller,-" + names.CertificateSigningRequestApprovingController,
		"use-service-account-credentials=true",
		"root-ca-file=" + p.ServerCA.TrustPath,
		"service-account-private-key-file=" + p.ServiceAccount.Path,
		"cluster-signing-kubelet-serving-cert-file=" + p.ServerCA.SigningPath,
		"cluster-signing-kubelet-serving-key-file=" + p.ServerCA.KeyPath,
		"leader-elect=false",
		"secure-port=0",
		"profiling=false",
		// The limits of upstream protect an API server far away from many
		// controller-managers; here they only delay the first pod.
		"kube-api-qps=1000",
		"kube-api-burst=2000",
	}
	for _, signer := range []string{"kube-apiserver-client", "kubelet-client", "legacy-unknown"} {
		args = append(args,
			"cluster-signing-"+signer+"-cert-file="+p.ClientCA.SigningPath,
			"cluster-signing-"+signer+"-key-file="+p.ClientCA.KeyPath)
	}
	return args
}

// newControllerContext is app.CreateControllerContext without its wait for the
// API server and without a name for the informers, which is unique in a process.
func newControllerContext(ctx context.Context, c *kcmconfig.CompletedConfig, root, client clientbuilder.ControllerClientBuilder) (app.ControllerContext, error) {
	shared, err := root.Client("shared-informers")
	if err != nil {
		return app.ControllerContext{}, fmt.Errorf("create client of informers: %w", err)
	}
	metadataConfig, err := root.Config("metadata-informers")
	if err != nil {
		return app.ControllerContext{}, fmt.Errorf("configure client of metadata informers: %w", err)
	}
	metadataClient, err := metadata.NewForConfig(metadataConfig)
	if err != nil {
		return app.ControllerContext{}, fmt.Errorf("create client of metadata informers: %w", err)
	}
	discovery, err := root.DiscoveryClient("controller-discovery")
	if err != nil {
		return app.ControllerContext{}, fmt.Errorf("create discovery client: %w", err)
	}
	objects := informers.NewSharedInformerFactoryWithOptions(shared, app.ResyncPeriod(c)(), informers.WithTransform(part.Trim))
	metadataOnly := metadatainformer.NewSharedInformerFactoryWithOptions(metadataClient, app.ResyncPeriod(c)(), metadatainformer.WithTransform(part.Trim))
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery))
	go wait.Until(mapper.Reset, 30*time.Second, ctx.Done())

	cc := app.ControllerContext{
		ClientBuilder:                   client,
		InformerFactory:                 objects,
		ObjectOrMetadataInformerFactory: informerfactory.NewInformerFactory(objects, metadataOnly),
		ComponentConfig:                 c.ComponentConfig,
		RESTMapper:                      mapper,
		InformersStarted:                make(chan struct{}),
		ResyncPeriod:                    app.ResyncPeriod(c),
		ControllerManagerMetrics:        controllersmetrics.NewControllerManagerMetrics("kube-controller-manager"),
	}
	gc := c.ComponentConfig.GarbageCollectorController
	if gc.EnableGarbageCollector && cc.IsControllerEnabled(app.NewControllerDescriptors()[names.GarbageCollectorController]) {
		ignored := make(map[schema.GroupResource]struct{})
		for _, r := range gc.GCIgnoredResources {
			ignored[schema.GroupResource{Group: r.Group, Resource: r.Resource}] = struct{}{}
		}
		cc.GraphBuilder = garbagecollector.NewDependencyGraphBuilder(ctx, metadataClient, mapper, ignored, cc.ObjectOrMetadataInformerFactory, cc.InformersStarted)
	}
	controllersmetrics.Register()
	return cc, nil
}

// tokenController makes the tokens of Secrets of type service-account-token.
// Upstream's own descriptor of it cannot be given a client from outside.
type tokenController struct {
	run func(ctx context.Context)
}

var _ app.Controller = (*tokenController)(nil)
var _ controller.Interface = (*tokenController)(nil)

func (t *tokenController) Name() string            { return names.ServiceAccountTokenController }
func (t *tokenController) Run(ctx context.Context) { t.run(ctx) }

func (m *ControllerManager) newTokenController(ctx context.Context, c *kcmconfig.CompletedConfig, cc app.ControllerContext, root clientbuilder.ControllerClientBuilder) (app.Controller, error) {
	sa := c.ComponentConfig.SAController
	var generator serviceaccount.TokenGenerator = newTokenKeys(m.cfg.PKI, serviceaccount.LegacyIssuer)
	if sa.ServiceAccountKeyFile != m.cfg.PKI().ServiceAccount.Path { // a user's own
		key, err := keyutil.PrivateKeyFromFile(sa.ServiceAccountKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read service account key %s: %w", sa.ServiceAccountKeyFile, err)
		}
		if generator, err = serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key); err != nil {
			return nil, fmt.Errorf("make token generator: %w", err)
		}
	}
	ca, err := readFile(sa.RootCAFile)
	if err != nil {
		return nil, err
	}
	client, err := root.Client("tokens-controller")
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	t, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx),
		cc.InformerFactory.Core().V1().ServiceAccounts(), cc.InformerFactory.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: ca})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return &tokenController{run: func(ctx context.Context) { t.Run(ctx, int(sa.ConcurrentSATokenSyncs)) }}, nil
}
