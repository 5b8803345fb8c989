// Package knarrtest gives Go tests a real Kubernetes.
//
//	func TestMain(m *testing.M) { os.Exit(knarrtest.Main(m)) }
//
//	func TestController(t *testing.T) {
//		c := knarrtest.Shared(t)   // one control plane for the package
//		ns := c.Namespace(t)       // a namespace for this test
//		client := c.Client(t)
//		…
//	}
//
// Start gives a test a control plane of its own: API server, controller-manager and
// scheduler in the test's process, as any user, with nothing to download, in about
// a second. There are no nodes, so that pods stay pending. Node starts a whole node,
// as root, in a child process.
//
// The control plane goes with controller-runtime, too: an envtest.Environment with
// UseExistingCluster and RESTConfig as its Config.
package knarrtest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/cluster"
)

// readyWithin bounds a start on a very slow machine.
const readyWithin = 2 * time.Minute

// Option says how a control plane differs from the usual one.
type Option func(*options)

type options struct {
	cluster  cluster.Config
	crds     []string
	webhooks []string
	objects  []string
}

// Seed has the control plane begin with a cluster that "knarr save" has written to a
// file: its objects, but no nodes and none of the pods on them.
func Seed(file string) Option {
	return func(o *options) { o.cluster.Seed = file }
}

// APIServerArgs are further flags of kube-apiserver: "name=value".
func APIServerArgs(args ...string) Option {
	return func(o *options) { o.cluster.APIServerArgs = append(o.cluster.APIServerArgs, args...) }
}

// ControllerManagerArgs are further flags of kube-controller-manager: "name=value".
func ControllerManagerArgs(args ...string) Option {
	return func(o *options) { o.cluster.ControllerManagerArgs = append(o.cluster.ControllerManagerArgs, args...) }
}

// SchedulerArgs are further flags of kube-scheduler: "name=value".
func SchedulerArgs(args ...string) Option {
	return func(o *options) { o.cluster.SchedulerArgs = append(o.cluster.SchedulerArgs, args...) }
}

// FeatureGates switches features of Kubernetes on and off. They hold for the whole
// process, from its first control plane that sets them on.
func FeatureGates(gates map[string]bool) Option {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		all = append(all, name+"="+strconv.FormatBool(gates[name]))
	}
	return APIServerArgs("feature-gates=" + strings.Join(all, ","))
}

// AdmissionPlugins switches admission plugins on that are off by default.
func AdmissionPlugins(names ...string) Option {
	return APIServerArgs("enable-admission-plugins=" + strings.Join(append([]string{"NodeRestriction"}, names...), ","))
}

// WithoutAdmissionPlugins switches admission plugins off that are on by default.
func WithoutAdmissionPlugins(names ...string) Option {
	return APIServerArgs("disable-admission-plugins=" + strings.Join(names, ","))
}

// CRDs installs the CustomResourceDefinitions in files and folders (not their
// subfolders) of YAML or JSON, and waits until they are served. What else is in the
// files is left out.
func CRDs(paths ...string) Option {
	return func(o *options) { o.crds = append(o.crds, paths...) }
}

// Webhooks installs the ValidatingWebhookConfigurations and
// MutatingWebhookConfigurations in files and folders. Where one names a Service, the
// server of the test is called in its place: on loopback, at the port and with the
// certificate that ControlPlane.Webhook tells. So are conversion webhooks of CRDs.
func Webhooks(paths ...string) Option {
	return func(o *options) { o.webhooks = append(o.webhooks, paths...) }
}

// Objects applies everything in files and folders, in their order, once the CRDs are
// served.
func Objects(paths ...string) Option {
	return func(o *options) { o.objects = append(o.objects, paths...) }
}

// Log is where Knarr's own log goes. Default: nowhere.
func Log(l *slog.Logger) Option {
	return func(o *options) { o.cluster.Log = l }
}

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Cluster is the control plane itself. Who closes it has nothing left to test.
	Cluster *cluster.Cluster
	// Webhook says how the test's webhooks are to be served. Its port is 0 if neither
	// Webhooks was given nor a CRD asks for conversion.
	Webhook Webhook
}

// Start runs a control plane until the test and its subtests have ended.
func Start(t testing.TB, opts ...Option) *ControlPlane {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyWithin)
	defer cancel()
	c, err := start(ctx, opts)
	if err != nil {
		t.Fatalf("knarrtest: %v", err)
	}
	t.Cleanup(c.close)
	return c
}

// start returns when everything is as the options say. What it started is stopped
// if it fails.
func start(ctx context.Context, opts []Option) (_ *ControlPlane, err error) {
	o := options{cluster: cluster.Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	for _, opt := range opts {
		opt(&o)
	}
	silenceUpstream()
	manifests, err := o.read()
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{}
	if c.Cluster, err = cluster.New(o.cluster); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	// It outlives the time that the start may take.
	if err := c.Cluster.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	select {
	case <-c.Cluster.Ready():
	case err := <-c.Cluster.Err():
		return nil, fmt.Errorf("start control plane: %w", err)
	case <-ctx.Done():
		return nil, fmt.Errorf("start control plane: %w\n%s", context.Cause(ctx), c.unready())
	}
	if err := c.install(ctx, manifests); err != nil {
		return nil, err
	}
	return c, nil
}

// unready tells what a start waits for.
func (c *ControlPlane) unready() string {
	var text strings.Builder
	for _, s := range c.Cluster.Status().Components {
		fmt.Fprintf(&text, "  %s: %s %s\n", s.Name, s.State, s.LastError)
	}
	return text.String()
}

func (c *ControlPlane) close() {
	c.Cluster.Close()
	if c.Webhook.CertDir != "" {
		_ = os.RemoveAll(c.Webhook.CertDir) // temporary
	}
}

// RESTConfig is an administrator's access.
func (c *ControlPlane) RESTConfig() *rest.Config { return c.Cluster.RESTConfig() }

// KubeconfigPath is a file for kubectl, with an administrator's access. It goes with
// the control plane.
func (c *ControlPlane) KubeconfigPath() string { return c.Cluster.KubeconfigPath() }

// Client is an administrator's.
func (c *ControlPlane) Client(t testing.TB) kubernetes.Interface {
	t.Helper()
	client, err := c.Cluster.Client()
	if err != nil {
		t.Fatalf("knarrtest: %v", err)
	}
	return client
}

// As is the access of a user of that name and those groups. It may do what RBAC
// allows it, and that is nothing at first.
func (c *ControlPlane) As(user string, groups ...string) *rest.Config {
	r := c.RESTConfig()
	r.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	return r
}

// Namespace makes a namespace with its default ServiceAccount, and deletes it when
// the test has ended, without waiting for that.
func (c *ControlPlane) Namespace(t testing.TB) string {
	t.Helper()
	ctx, client := t.Context(), c.Client(t)
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "test-", Annotations: map[string]string{"knarr.dev/test": t.Name()},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("knarrtest: make a namespace: %v", err)
	}
	t.Cleanup(func() {
		err := client.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), ns.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) && c.running() {
			t.Errorf("knarrtest: delete namespace %s: %v", ns.Name, err)
		}
	})
	// Its controller makes it as well, a moment later: a pod that comes before waits.
	_, err = client.CoreV1().ServiceAccounts(ns.Name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatalf("knarrtest: make the default ServiceAccount of namespace %s: %v", ns.Name, err)
	}
	return ns.Name
}

// running tells whether the control plane has not been stopped.
func (c *ControlPlane) running() bool {
	select {
	case <-c.Cluster.Err():
		return false
	default:
		return true
	}
}
