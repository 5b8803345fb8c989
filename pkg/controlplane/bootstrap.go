package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/knarr-dev/knarr/pkg/pki"
)

// systemNamespaces exist in every cluster.
func systemNamespaces() []string {
	return []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault}
}

// bootstrap writes what every client of a cluster relies on: namespaces with
// their default ServiceAccount and root certificate, Kubernetes' roles and
// bindings, the system priority classes. Controllers make most of these too,
// later: a client that asks at once must not miss them.
//
// What is there already is read in a few lists and, where it falls short,
// reconciled as upstream's own hooks do, so that a restart writes nothing.
//
// A stop in the middle is no failure: the API server ends the whole process when
// one of its hooks fails.
func bootstrap(ctx context.Context, cfg *rest.Config, p *pki.PKI) error {
	if err := writeEssentials(ctx, cfg, p); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func writeEssentials(ctx context.Context, cfg *rest.Config, p *pki.PKI) error {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create client for bootstrap: %w", err)
	}
	rootCA, err := os.ReadFile(p.ServerCA.TrustPath)
	if err != nil {
		return fmt.Errorf("read serving authority: %w", err)
	}
	roles, err := policy(ctx, client)
	if err != nil {
		return err
	}

	// The namespaces come first: most of the rest is in one of them.
	var namespaces []func() error
	for _, ns := range systemNamespaces() {
		namespaces = append(namespaces, func() error {
			_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
			return existing(err)
		})
	}
	if err := each(len(namespaces), namespaces); err != nil {
		return fmt.Errorf("create system namespaces: %w", err)
	}

	work := roles
	for _, ns := range systemNamespaces() {
		work = append(work, func() error {
			_, err := client.CoreV1().ServiceAccounts(ns).Create(ctx, defaultServiceAccount(ns), metav1.CreateOptions{})
			return existing(err)
		}, func() error {
			_, err := client.CoreV1().ConfigMaps(ns).Create(ctx, rootCertificate(ns, rootCA), metav1.CreateOptions{})
			return existing(err)
		})
	}
	for _, pc := range schedulingv1.SystemPriorityClasses() {
		work = append(work, func() error {
			_, err := client.SchedulingV1().PriorityClasses().Create(ctx, pc, metav1.CreateOptions{})
			return existing(err)
		})
	}
	if err := each(8, work); err != nil {
		return fmt.Errorf("write bootstrap objects: %w", err)
	}
	return nil
}

func existing(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// each runs all work in as many goroutines as workers says.
func each(workers int, work []func() error) error {
	next := make(chan func() error)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for f := range next {
				errs[i] = errors.Join(errs[i], f())
			}
		})
	}
	for _, f := range work {
		next <- f
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// policy returns the work that brings Kubernetes' default roles and bindings up
// to date; upstream: pkg/registry/rbac/rest.
func policy(ctx context.Context, client kubernetes.Interface) ([]func() error, error) {
	rbac := client.RbacV1()
	roles, bindings := map[string]reconciliation.RuleOwner{}, map[string]reconciliation.RoleBinding{}
	list := []func() error{
		func() error {
			l, err := rbac.ClusterRoles().List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("list cluster roles: %w", err)
			}
			for i := range l.Items {
				roles[key("", l.Items[i].Name)] = reconciliation.ClusterRoleRuleOwner{ClusterRole: &l.Items[i]}
			}
			return nil
		},
		func() error {
			l, err := rbac.Roles("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("list roles: %w", err)
			}
			for i := range l.Items {
				roles[key(l.Items[i].Namespace, l.Items[i].Name)] = reconciliation.RoleRuleOwner{Role: &l.Items[i]}
			}
			return nil
		},
		func() error {
			l, err := rbac.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("list cluster role bindings: %w", err)
			}
			for i := range l.Items {
				bindings[key("", l.Items[i].Name)] = reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &l.Items[i]}
			}
			return nil
		},
		func() error {
			l, err := rbac.RoleBindings("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("list role bindings: %w", err)
			}
			for i := range l.Items {
				bindings[key(l.Items[i].Namespace, l.Items[i].Name)] = reconciliation.RoleBindingAdapter{RoleBinding: &l.Items[i]}
			}
			return nil
		},
	}
	if err := each(1, list); err != nil {
		return nil, err
	}

	var work []func() error
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		work = append(work, func() error {
			first := true
			return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
				o := reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}
				if first {
					o.Client = listedRoles{RuleOwnerModifier: m, roles: roles}
				}
				first = false
				_, err := o.Run()
				return existing(err)
			})
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		work = append(work, func() error {
			first := true
			return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
				o := reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}
				if first {
					o.Client = listedBindings{RoleBindingModifier: m, bindings: bindings}
				}
				first = false
				_, err := o.Run()
				return existing(err)
			})
		})
	}
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	for _, rs := range bootstrappolicy.NamespaceRoles() {
		for _, r := range rs {
			role(reconciliation.RoleRuleOwner{Role: &r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
		}
	}
	for _, bs := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bs {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &b}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
		}
	}
	own := ownPolicy()
	for _, r := range own.clusterRoles {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range own.clusterBindings {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: b}, reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	for _, r := range own.roles {
		role(reconciliation.RoleRuleOwner{Role: r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
	}
	for _, b := range own.bindings {
		binding(reconciliation.RoleBindingAdapter{RoleBinding: b}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: client.CoreV1().Namespaces()})
	}
	return work, nil
}

func key(namespace, name string) string { return namespace + "/" + name }

// listedRoles answers Get from a list that was read before.
type listedRoles struct {
	reconciliation.RuleOwnerModifier
	roles map[string]reconciliation.RuleOwner
}

func (l listedRoles) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	if r, ok := l.roles[key(namespace, name)]; ok {
		return r, nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("roles"), name)
}

// listedBindings answers Get from a list that was read before.
type listedBindings struct {
	reconciliation.RoleBindingModifier
	bindings map[string]reconciliation.RoleBinding
}

func (l listedBindings) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	if b, ok := l.bindings[key(namespace, name)]; ok {
		return b, nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("rolebindings"), name)
}
