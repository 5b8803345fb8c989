package helm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// hashLabel on a release identifies what it was made from.
	hashLabel = "knarr.dev/helmchart"
	// history is how many revisions of a release are kept.
	history = 10
	// defaultTimeout is Helm's own.
	defaultTimeout = 5 * time.Minute
)

// access is the API as Helm wants it, in the name of a namespace.
type access struct {
	cfg       *rest.Config
	namespace string
	cached    discovery.CachedDiscoveryInterface
	kinds     *restmapper.DeferredDiscoveryRESTMapper
}

func newAccess(cfg *rest.Config, namespace string) (*access, error) {
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create client of discovery: %w", err)
	}
	cached := memory.NewMemCacheClient(d)
	return &access{cfg, namespace, cached, restmapper.NewDeferredDiscoveryRESTMapper(cached)}, nil
}

func (a *access) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(a.cfg), nil }
func (a *access) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return a.cached, nil
}
func (a *access) ToRESTMapper() (meta.RESTMapper, error) { return a.kinds, nil }
func (a *access) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: a.namespace}})
}

// release is one that Helm knows, or does not know yet.
type release struct {
	name, namespace string
	cfg             *action.Configuration
}

func (c *Controller) release(hc *helmChart) (*release, error) {
	r := &release{name: hc.Name, namespace: hc.Spec.TargetNamespace}
	if r.namespace == "" {
		r.namespace = hc.Namespace
	}
	a, err := newAccess(c.rest, r.namespace)
	if err != nil {
		return nil, err
	}
	r.cfg = action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := r.cfg.Init(a, r.namespace, "secret"); err != nil {
		return nil, fmt.Errorf("prepare Helm: %w", err)
	}
	return r, nil
}

// last is the newest revision; nil if there is none.
func (r *release) last() (*releasev1.Release, error) {
	found, err := r.cfg.Releases.Last(r.name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find release %s in %s: %w", r.name, r.namespace, err)
	}
	last, ok := found.(*releasev1.Release)
	if !ok {
		return nil, fmt.Errorf("find release %s in %s: it is of a kind of Helm's that is not known here: %T", r.name, r.namespace, found)
	}
	return last, nil
}

// hash identifies what a release is made from. A chart without a version stays
// the one that was the newest.
func hash(s chartSpec, values map[string]any) (string, error) {
	s.overrides = overrides{} // they are in values
	s.Set, s.Timeout = nil, nil
	text, err := json.Marshal([]any{s, values})
	if err != nil {
		return "", fmt.Errorf("encode values: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16]), nil
}

// What to do with a release.
type plan int

const (
	nothing plan = iota
	install
	upgrade
	reinstall // uninstall, then install
)

// decide tells what has to be done. policy is what to do after a failure:
//   - abort: nothing, until what the release is made from changes
//   - reinstall: uninstall it, and begin anew
//   - retry: try again
//   - empty: reinstall if it never was deployed, else retry, by which what the
//     release keeps is not lost
//
// A revision that was begun and not ended, since this process went meanwhile,
// counts as failed.
func decide(last *releasev1.Release, deployedBefore bool, want, policy string) plan {
	if last == nil || last.Info.Status == common.StatusUninstalled {
		return install
	}
	same := last.Labels[hashLabel] == want
	switch last.Info.Status {
	case common.StatusDeployed, common.StatusSuperseded:
		if same {
			return nothing
		}
		return upgrade
	case common.StatusUninstalling:
		return reinstall
	}
	switch {
	case policy == "abort" && same:
		return nothing
	case policy == "reinstall", policy == "" && !deployedBefore:
		return reinstall
	}
	return upgrade
}

// deployedBefore tells whether any revision was.
func (r *release) deployedBefore() (bool, error) {
	all, err := r.cfg.Releases.History(r.name)
	if err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
		return false, fmt.Errorf("find revisions of %s in %s: %w", r.name, r.namespace, err)
	}
	for _, one := range all {
		if rel, ok := one.(*releasev1.Release); ok && (rel.Info.Status == common.StatusDeployed || rel.Info.Status == common.StatusSuperseded) {
			return true, nil
		}
	}
	return false, nil
}

// unlock has Helm go on after a revision that was never ended.
func (r *release) unlock(last *releasev1.Release) error {
	if last == nil || !last.Info.Status.IsPending() {
		return nil
	}
	last.SetStatus(common.StatusFailed, "interrupted")
	if err := r.cfg.Releases.Update(last); err != nil {
		return fmt.Errorf("take up release %s in %s: %w", r.name, r.namespace, err)
	}
	return nil
}

// missing tells whether something that the release made has gone.
func (r *release) missing(last *releasev1.Release) (bool, error) {
	objects, err := r.cfg.KubeClient.Build(bytes.NewBufferString(last.Manifest), false)
	if err != nil {
		return false, fmt.Errorf("read what release %s made: %w", r.name, err)
	}
	for _, o := range objects {
		_, err := resource.NewHelper(o.Client, o.Mapping).Get(o.Namespace, o.Name)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("find what release %s made: %w", r.name, err)
		}
	}
	return false, nil
}

// made is what is used for an install or upgrade.
type made struct {
	chart  *chartv2.Chart
	values map[string]any
	hash   string
}

func timeout(s chartSpec) time.Duration {
	if s.Timeout != nil && s.Timeout.Duration > 0 {
		return s.Timeout.Duration
	}
	return defaultTimeout
}

func (r *release) install(ctx context.Context, s chartSpec, m made) error {
	i := action.NewInstall(r.cfg)
	i.ReleaseName, i.Namespace, i.CreateNamespace = r.name, r.namespace, s.CreateNamespace
	i.Replace = true // one that was uninstalled with its history kept
	i.Timeout, i.WaitStrategy = timeout(s), kube.HookOnlyStrategy
	i.TakeOwnership, i.ForceConflicts = s.TakeOwnership, s.TakeOwnership
	i.Labels = map[string]string{hashLabel: m.hash}
	_, err := i.RunWithContext(ctx, m.chart, m.values)
	return err
}

func (r *release) upgrade(ctx context.Context, s chartSpec, m made) error {
	u := action.NewUpgrade(r.cfg)
	u.Namespace, u.MaxHistory = r.namespace, history
	u.Timeout, u.WaitStrategy = timeout(s), kube.HookOnlyStrategy
	// The chart's word counts for the fields that it sets, as it did in Helm 3.
	u.TakeOwnership, u.ForceConflicts = s.TakeOwnership, true
	u.ResetValues = true
	u.Labels = map[string]string{hashLabel: m.hash}
	_, err := u.RunWithContext(ctx, r.name, m.chart, m.values)
	return err
}

// uninstall is no error where there is nothing.
func (r *release) uninstall(s chartSpec) error {
	last, err := r.last()
	if err != nil || last == nil {
		return err
	}
	u := action.NewUninstall(r.cfg)
	u.Timeout, u.WaitStrategy = timeout(s), kube.HookOnlyStrategy
	u.DeletionPropagation = "background"
	if _, err := u.Run(r.name); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}
