// Package helm installs what HelmChart objects ask for, by Helm's own library:
// no pod and no image is needed. The objects are those of k3s' helm-controller.
// `knarr helm` sees the same releases.
package helm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/status"
)

// Name is what `--disable` calls the add-on; k3s' own switch is
// --disable-helm-controller.
const Name = "helm-controller"

// FieldManager owns what charts set, whoever installs them: this process,
// `knarr helm` or Helm itself.
const FieldManager = "helm"

const (
	manager = "knarr-helm"
	// finalizer keeps a HelmChart until its release is uninstalled.
	finalizer = "knarr.dev/helm-uninstall"
	// atOnce is how many releases are worked on at a time.
	atOnce = 4
	// checkEvery is how often it is looked whether what a release made is there.
	checkEvery = 10 * time.Minute
	// firstRetry and lastRetry bound the time to the next try of what failed.
	firstRetry = 5 * time.Second
	lastRetry  = 10 * time.Minute

	deployed, failed = "Deployed", "Failed" // conditions
)

// Config is what a Controller works with.
type Config struct {
	// REST is a client of Knarr's.
	REST func() *rest.Config
	// Needs is the component that has to be ready before the API is asked.
	Needs string
	// Dir is for charts while they are downloaded.
	Dir string
	// Static is the folder that archives of charts are taken from.
	Static string
	Log    *slog.Logger
}

// Controller is the add-on.
type Controller struct {
	cfg Config

	// Set by Run.
	rest    *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface

	mu    sync.Mutex
	fails map[key]*failure
}

// failure is how a HelmChart that could not be installed stands.
type failure struct {
	err   error
	since time.Time
	tries int
}

var _ component.Component = (*Controller)(nil)

// New returns the add-on. Nothing happens before Run.
func New(cfg Config) *Controller {
	kube.ManagedFieldsManager = FieldManager // else it is the executable's name
	return &Controller{cfg: cfg, fails: map[key]*failure{}}
}

// Name implements component.Component.
func (c *Controller) Name() string { return Name }

// Needs implements component.Component.
func (c *Controller) Needs() []string { return []string{c.cfg.Needs} }

// Troubles are the HelmCharts that could not be installed.
func (c *Controller) Troubles() []status.Trouble {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []status.Trouble
	for name, f := range c.fails {
		all = append(all, status.Trouble{Part: Name, Object: name.NamespacedName.String(), Error: f.err.Error(), Since: f.since})
	}
	slices.SortFunc(all, func(a, b status.Trouble) int { return strings.Compare(a.Object, b.Object) })
	return all
}

// Run implements component.Component. It is ready at once: nobody waits for
// charts.
func (c *Controller) Run(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	cfg := rest.CopyConfig(c.cfg.REST())
	cfg.ContentType, cfg.AcceptContentTypes = "application/json", "application/json" // for kinds that are not known
	c.rest = cfg
	var err error
	if c.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	if err := c.defineTypes(ctx); err != nil {
		return err
	}
	q := newQueue(atOnce, c.reconcile)
	factory := metadatainformer.NewSharedInformerFactoryWithOptions(meta, 0, metadatainformer.WithTransform(trim))
	var watched []schema.GroupVersionResource
	for _, group := range groups() {
		watched = append(watched, charts(group), configs(group))
	}
	for _, r := range watched {
		_, err := factory.ForResource(r).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) { enqueue(q, r.Group, o) },
			UpdateFunc: func(before, now any) {
				if changed(before, now) {
					enqueue(q, r.Group, now)
				}
			},
			DeleteFunc: func(o any) { enqueue(q, r.Group, o) },
		})
		if err != nil {
			return fmt.Errorf("watch %s: %w", r.Resource, err)
		}
	}
	factory.Start(ctx.Done())
	q.run(ctx)
	factory.Shutdown()
	return nil
}

// trim keeps what is read of an object's metadata. What kubectl noted of the
// last apply may be a whole chart.
func trim(o any) (any, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return o, nil
	}
	m.SetManagedFields(nil)
	m.SetLabels(nil)
	annotations := map[string]string{}
	for _, name := range []string{unmanaged, managedBy} {
		if v, ok := m.GetAnnotations()[name]; ok {
			annotations[name] = v
		}
	}
	m.SetAnnotations(annotations)
	return o, nil
}

// changed tells whether there may be something to do. Status is not.
func changed(before, now any) bool {
	a, errA := meta.Accessor(before)
	b, errB := meta.Accessor(now)
	return errA != nil || errB != nil || a.GetGeneration() != b.GetGeneration() || a.GetUID() != b.GetUID() ||
		(a.GetDeletionTimestamp() == nil) != (b.GetDeletionTimestamp() == nil) ||
		a.GetAnnotations()[managedBy] != b.GetAnnotations()[managedBy] || len(a.GetAnnotations()) != len(b.GetAnnotations())
}

// enqueue has the HelmChart looked at that an object is, or is the
// HelmChartConfig of.
func enqueue(q *queue, group string, o any) {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	if m, err := meta.Accessor(o); err == nil {
		q.add(key{group, types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}}, 0)
	}
}

// defineTypes has the API server serve our kinds, and waits until it does. Types
// that somebody else brought stay as they are.
func (c *Controller) defineTypes(ctx context.Context) error {
	types := c.dynamic.Resource(apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	for _, crd := range crds() {
		now, err := types.Get(ctx, crd.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("find type %s: %w", crd.Name, err)
		}
		if err == nil && now.GetLabels()["app.kubernetes.io/managed-by"] != manager {
			continue
		}
		text, err := json.Marshal(crd)
		if err != nil {
			return fmt.Errorf("encode type %s: %w", crd.Name, err)
		}
		if _, err := types.Patch(ctx, crd.Name, "application/apply-patch+yaml", text, metav1.PatchOptions{FieldManager: manager, Force: new(true)}); err != nil {
			return fmt.Errorf("define type %s: %w", crd.Name, err)
		}
	}
	for _, crd := range crds() {
		if err := c.awaitType(ctx, crd.Name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) awaitType(ctx context.Context, name string) error {
	types := c.dynamic.Resource(apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	w, err := types.Watch(ctx, metav1.ListOptions{FieldSelector: metav1.ObjectNameField + "=" + name})
	if err != nil {
		return fmt.Errorf("wait for type %s: %w", name, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return fmt.Errorf("wait for type %s: the API server ended the watch", name)
			}
			text, err := json.Marshal(e.Object)
			var crd apiextensionsv1.CustomResourceDefinition
			if err == nil {
				err = json.Unmarshal(text, &crd)
			}
			if err != nil {
				return fmt.Errorf("wait for type %s: %w", name, err)
			}
			if slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
				return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
			}) {
				return nil
			}
		}
	}
}

// reconcile brings one release in line with its HelmChart.
func (c *Controller) reconcile(ctx context.Context, name key) time.Duration {
	o, err := c.dynamic.Resource(charts(name.group)).Namespace(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		c.settle(name, nil)
		return 0
	}
	hc := &helmChart{group: name.group}
	if err == nil {
		err = decode(o, hc)
	}
	if err != nil {
		return c.retry(ctx, name, hc, err)
	}
	if by, ok := hc.Annotations[managedBy]; ok && by != manager && by != "knarr" {
		return 0
	}
	if _, ok := hc.Annotations[unmanaged]; ok {
		return 0
	}
	if hc.DeletionTimestamp != nil {
		err = c.remove(hc)
		if err == nil {
			err = c.setFinalizer(ctx, hc, false)
		}
		if err != nil {
			return c.retry(ctx, name, hc, err)
		}
		c.settle(name, nil)
		return 0
	}
	again, err := c.bring(ctx, hc)
	if err != nil {
		return c.retry(ctx, name, hc, err)
	}
	c.settle(name, nil)
	return again
}

// remove uninstalls the release of a HelmChart that is being deleted.
func (c *Controller) remove(hc *helmChart) error {
	if !slices.Contains(hc.Finalizers, finalizer) {
		return nil // nothing was ever installed for it
	}
	r, err := c.release(hc)
	if err != nil {
		return err
	}
	return r.uninstall(hc.Spec)
}

// errAborted is the failure of a release that is left as it is.
var errAborted = errors.New("it failed, and the failure policy is abort: change the HelmChart or uninstall the release")

// bring installs or upgrades a release if it has to be. It returns when to look
// again.
func (c *Controller) bring(ctx context.Context, hc *helmChart) (time.Duration, error) {
	if err := c.setFinalizer(ctx, hc, true); err != nil {
		return 0, err
	}
	config, err := c.config(ctx, hc)
	if err != nil {
		return 0, err
	}
	policy := hc.Spec.FailurePolicy
	if config != nil && config.Spec.FailurePolicy != "" {
		policy = config.Spec.FailurePolicy
	}
	m := made{}
	if m.values, err = values(ctx, hc, config, c.secretsOf(hc.Namespace)); err != nil {
		return 0, err
	}
	if m.hash, err = hash(hc.Spec, m.values); err != nil {
		return 0, err
	}
	r, err := c.release(hc)
	if err != nil {
		return 0, err
	}
	last, err := r.last()
	if err != nil {
		return 0, err
	}
	before, err := r.deployedBefore()
	if err != nil {
		return 0, err
	}
	do := decide(last, before, m.hash, policy)
	if do == nothing && last.Info.Status.IsPending() || do == nothing && last.Info.Status == "failed" {
		return 0, errAborted
	}
	if do == nothing {
		gone, err := r.missing(last)
		if err != nil {
			return 0, err
		}
		if !gone {
			return checkEvery, c.setStatus(ctx, hc, last.Version, chartName(last.Chart.Metadata.Name, last.Chart.Metadata.Version), nil)
		}
		do = upgrade
	}
	if m.chart, err = c.fetch(ctx, hc); err != nil {
		return 0, err
	}
	if err := r.unlock(last); err != nil {
		return 0, err
	}
	verb := "installed"
	switch do {
	case install:
		err = r.install(ctx, hc.Spec, m)
	case upgrade:
		verb = "upgraded"
		err = r.upgrade(ctx, hc.Spec, m)
	case reinstall:
		if err = r.uninstall(hc.Spec); err == nil {
			err = r.install(ctx, hc.Spec, m)
		}
	}
	if err != nil {
		return 0, err
	}
	now, err := r.last()
	if err != nil {
		return 0, err
	}
	if now == nil {
		return 0, fmt.Errorf("release %s in %s has gone meanwhile", r.name, r.namespace)
	}
	chart := chartName(m.chart.Metadata.Name, m.chart.Metadata.Version)
	c.cfg.Log.Info("chart "+verb, "helmchart", hc.Namespace+"/"+hc.Name, "chart", chart, "namespace", r.namespace, "revision", now.Version)
	c.event(ctx, hc, corev1.EventTypeNormal, "Deployed", fmt.Sprintf("%s %s in namespace %s, revision %d", chart, verb, r.namespace, now.Version))
	return checkEvery, c.setStatus(ctx, hc, now.Version, chart, nil)
}

func chartName(name, version string) string { return name + "-" + version }

// config is the HelmChartConfig of a HelmChart; nil if there is none.
func (c *Controller) config(ctx context.Context, hc *helmChart) (*helmChartConfig, error) {
	o, err := c.dynamic.Resource(configs(hc.group)).Namespace(hc.Namespace).Get(ctx, hc.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	config := &helmChartConfig{}
	if err == nil {
		err = decode(o, config)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", configKind, err)
	}
	return config, nil
}

// retry tells of an error, once, and returns when to try again.
func (c *Controller) retry(ctx context.Context, name key, hc *helmChart, err error) time.Duration {
	if ctx.Err() != nil {
		return 0 // so it was to be; the next start goes on
	}
	isNew, tries := c.settle(name, err)
	if isNew {
		text := strings.Join(strings.Fields(err.Error()), " ")
		c.cfg.Log.Warn("chart can't be installed", "helmchart", name.NamespacedName.String(), "err", text)
		if hc.UID != "" {
			c.event(ctx, hc, corev1.EventTypeWarning, "Failed", text)
			if err := c.setStatus(ctx, hc, hc.Status.Revision, hc.Status.Chart, errors.New(text)); err != nil {
				c.cfg.Log.Debug("status not written", "helmchart", name.NamespacedName.String(), "err", err)
			}
		}
	}
	if errors.Is(err, errAborted) {
		return 0
	}
	return min(lastRetry, firstRetry<<min(tries, 10))
}

// settle notes how a HelmChart stands; a nil error is well. It tells whether the
// error is new, and how many there were before.
func (c *Controller) settle(name key, err error) (isNew bool, tries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.fails, name)
		return false, 0
	}
	f := c.fails[name]
	if f == nil {
		f = &failure{since: time.Now()}
		c.fails[name] = f
	}
	isNew = f.err == nil || f.err.Error() != err.Error()
	f.err, tries = err, f.tries
	f.tries++
	return isNew, tries
}
