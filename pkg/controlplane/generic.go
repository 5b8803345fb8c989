package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/google/uuid"
	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/keyutil"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/knarr-dev/knarr/pkg/part"
)

// newConfig is app.NewConfig with a loopback certificate of ours. Upstream's makes
// two RSA keys at each start, before anything else can be done: 40 to 60 ms each
// on the machine of BENCHMARKS.md. TestConfigIsThatOfUpstream compares the two, as
// deep as it looks.
func newConfig(opts options.CompletedOptions) (*app.Config, error) {
	generic, shared, storage, err := genericConfig(opts)
	if err != nil {
		return nil, err
	}
	kube, services, plugins, err := app.CreateKubeAPIServerConfig(opts, generic, shared, storage)
	if err != nil {
		return nil, fmt.Errorf("configure the API groups of Kubernetes: %w", err)
	}
	// Each of the three servers changes its own copy.
	plane := kube.ControlPlane
	webhooks := webhook.NewDefaultAuthenticationInfoResolverWrapper(plane.ProxyTransport, plane.Generic.EgressSelector, plane.Generic.LoopbackClientConfig, plane.Generic.TracerProvider)
	extensions, err := controlplaneapiserver.CreateAPIExtensionsConfig(*plane.Generic, plane.VersionedInformers, plugins, opts.CompletedOptions, opts.MasterCount, services, webhooks)
	if err != nil {
		return nil, fmt.Errorf("configure custom resources: %w", err)
	}
	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(*plane.Generic, opts.CompletedOptions, plane.VersionedInformers, services, plane.ProxyTransport, plane.Extra.PeerProxy, plugins)
	if err != nil {
		return nil, fmt.Errorf("configure aggregated APIs: %w", err)
	}
	return &app.Config{Options: opts, KubeAPIs: kube, ApiExtensions: extensions, Aggregator: aggregator}, nil
}

// genericConfig is what all three servers are made from.
func genericConfig(opts options.CompletedOptions) (*genericapiserver.Config, informers.SharedInformerFactory, *serverstorage.DefaultStorageFactory, error) {
	c := genericapiserver.NewConfig(legacyscheme.Codecs)
	c.Flagz = opts.Flagz
	c.MergedResourceConfig = controlplane.DefaultAPIResourceConfigSource()
	c.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	c.LongRunningFunc = filters.BasicLongRunningRequestCheck(sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))

	definitions := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	names := openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme)
	c.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, names)
	c.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, names)
	c.OpenAPIConfig.Info.Title, c.OpenAPIV3Config.Info.Title = "Kubernetes", "Kubernetes"

	if err := opts.GenericServerRunOptions.ApplyTo(c); err != nil {
		return nil, nil, nil, fmt.Errorf("configure requests: %w", err)
	}
	if err := serveLoopback(opts, c); err != nil {
		return nil, nil, nil, err
	}
	client, err := kubernetes.NewForConfig(c.LoopbackClientConfig)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create the API server's own client: %w", err)
	}
	shared := informers.NewSharedInformerFactoryWithOptions(client, 10*time.Minute, informers.WithTransform(part.Trim))

	ctx := wait.ContextForChannel(c.DrainedNotify())
	tracing := utilfeature.DefaultFeatureGate.Enabled(genericfeatures.APIServerTracing)
	transport := &opts.Etcd.StorageConfig.Transport
	var storage *serverstorage.DefaultStorageFactory
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"features", func() error { return opts.Features.ApplyTo(c, client, shared) }},
		{"API versions", func() error { return opts.APIEnablement.ApplyTo(c, c.MergedResourceConfig, legacyscheme.Scheme) }},
		{"egress", func() error { return opts.EgressSelector.ApplyTo(c) }},
		{"traces", func() error {
			transport.TracerProvider = noopoteltrace.NewTracerProvider()
			if !tracing {
				return nil
			}
			err := opts.Traces.ApplyTo(c.EgressSelector, c)
			transport.TracerProvider = c.TracerProvider
			return err
		}},
		{"storage", func() error {
			if c.EgressSelector != nil {
				transport.EgressLookup = c.EgressSelector.Lookup
			}
			s := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(c.EffectiveVersion)
			s.APIResourceConfig = c.MergedResourceConfig
			s.DefaultResourceEncoding.SetEffectiveVersion(c.EffectiveVersion)
			var err error
			if storage, err = s.Complete(opts.Etcd).New(); err != nil {
				return err
			}
			storage.StorageConfig.StorageObjectCountTracker = c.StorageObjectCountTracker
			return opts.Etcd.ApplyWithStorageFactoryTo(storage, c)
		}},
		{"authentication", func() error {
			return opts.Authentication.ApplyTo(ctx, &c.Authentication, c.SecureServing, c.EgressSelector, c.OpenAPIConfig, c.OpenAPIV3Config, client, shared, c.APIServerID)
		}},
		{"authorization", func() error {
			var err error
			c.Authorization.Authorizer, c.RuleResolver, _, err = controlplaneapiserver.BuildAuthorizer(ctx, opts.CompletedOptions, c.EgressSelector, c.APIServerID, shared)
			return err
		}},
		{"the audit log", func() error { return opts.Audit.ApplyTo(c) }},
	} {
		if err := step.do(); err != nil {
			return nil, nil, nil, fmt.Errorf("configure %s: %w", step.what, err)
		}
	}
	return c, shared, storage, nil
}

// serveLoopback applies what is served to whom by which certificates, and gives the
// API server a way to itself.
func serveLoopback(opts options.CompletedOptions, c *genericapiserver.Config) error {
	if err := opts.SecureServing.SecureServingOptions.ApplyTo(&c.SecureServing); err != nil {
		return fmt.Errorf("configure TLS: %w", err)
	}
	cert, key, err := loopbackCertificate()
	if err != nil {
		return err
	}
	own, err := dynamiccertificates.NewStaticSNICertKeyContent("loopback", cert, key, genericapiserver.LoopbackClientServerNameOverride)
	if err != nil {
		return fmt.Errorf("use the loopback certificate: %w", err)
	}
	// The first that has a name is taken.
	c.SecureServing.SNICerts = append([]dynamiccertificates.SNICertKeyContentProvider{own}, c.SecureServing.SNICerts...)
	c.LoopbackClientConfig, err = c.SecureServing.NewLoopbackClientConfig(uuid.NewString(), cert)
	if err != nil {
		return fmt.Errorf("configure the API server's own client: %w", err)
	}
	c.LoopbackClientConfig.ContentType = "application/vnd.kubernetes.protobuf"
	c.LoopbackClientConfig.DisableCompression = true
	return nil
}

// loopbackCertificate makes one that signs itself, as PEM. It lives as long as the
// process, whose clock may jump by years when it first hears the time: so it has
// no end (RFC 5280, 4.1.2.5).
func loopbackCertificate() (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of the loopback certificate: %w", err)
	}
	name := genericapiserver.LoopbackClientServerNameOverride
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, nil, fmt.Errorf("make the loopback certificate: %w", err)
	}
	key, err = keyutil.MarshalPrivateKeyToPEM(k)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key of the loopback certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key, nil
}
