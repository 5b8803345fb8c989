// Package addons is the list of what Knarr brings beside Kubernetes itself,
// each of it in this process.
package addons

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/knarr-dev/knarr/pkg/addons/dns"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// Addons is the part.
type Addons struct {
	// ControlPlane is set on a machine that has a control plane, which writes the
	// add-ons' objects.
	ControlPlane bool
	// DNSSockets are where cluster DNS answers. They belong to the caller, who
	// may hand them to the process that follows; nil where this machine is no node.
	DNSSockets *dns.Sockets
}

var _ part.Part = Addons{}

// Components implements part.Part.
func (a Addons) Components(env *part.Env) ([]component.Spec, error) {
	var all []component.Spec
	for _, addOn := range []struct {
		name       string // as --disable has it
		components func(*part.Env) ([]component.Spec, error)
	}{
		{"dns", a.dns},
		{"servicelb", a.serviceLB},
		{"local-storage", a.localStorage},
		{"registry", a.registry},
		{"runtimes", a.runtimes},
	} {
		if slices.Contains(env.Config.Disable, addOn.name) {
			continue
		}
		specs, err := addOn.components(env)
		if err != nil {
			return nil, err
		}
		all = append(all, specs...)
	}
	if a.ControlPlane {
		all = append(all, controllers(env)...)
	}
	return all, nil
}

func (a Addons) dns(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	granted := make(chan struct{})
	grant := sync.OnceFunc(func() { close(granted) })
	cfg := dns.Config{
		REST:       func() (*rest.Config, error) { return env.RESTConfig(part.DNS), nil },
		APIReady:   granted,
		ClusterIP:  c.Network.ClusterDNS,
		Domain:     c.Network.ClusterDomain,
		CIDRs:      []netip.Prefix{c.Network.ServiceCIDR, c.Network.ClusterCIDR},
		ResolvConf: c.Node.ResolvConf,
		Sockets:    a.DNSSockets,
		Metrics:    legacyregistry.Registerer(),
		Log:        env.Log,
	}
	var specs []component.Spec
	if a.ControlPlane {
		roles := dns.Objects(cfg)
		services := slices.DeleteFunc(slices.Clone(roles), func(o runtime.Object) bool { return !isService(o) })
		roles = slices.DeleteFunc(roles, isService)
		specs = append(specs,
			// Addresses of Services are given a little later than roles.
			component.Spec{Component: component.Func("dns-roles", []string{env.Answering}, applier(env, roles, func(ctx context.Context) error {
				if err := dns.AwaitAccess(ctx, env.RESTConfig(part.DNS)); err != nil {
					return err
				}
				grant()
				return nil
			})), Class: component.Retried},
			component.Spec{Component: component.Func("dns-service", []string{env.Serving}, applier(env, services, nil)), Class: component.Retried})
	} else {
		grant() // every node has the role
	}
	if a.DNSSockets == nil {
		return specs, nil
	}
	d, err := dns.New(cfg)
	if err != nil {
		return nil, err
	}
	return append(specs,
		// Pods go on asking while the others stop.
		component.Spec{Component: d, Class: component.Retried, Last: true},
		component.Spec{Component: component.Func("dns-rules", []string{"bundle"}, func(ctx context.Context, ready chan<- struct{}) error {
			if err := dns.ApplyRules(ctx, c.Network.ClusterDNS); err != nil {
				return err
			}
			close(ready)
			<-ctx.Done()
			return nil
		}), Class: component.Retried}), nil
}

func isService(o runtime.Object) bool {
	_, is := o.(*corev1.Service)
	return is
}

// applier writes an add-on's own objects and then calls written, if it is given.
func applier(env *part.Env, objects []runtime.Object, written func(context.Context) error) func(context.Context, chan<- struct{}) error {
	return func(ctx context.Context, ready chan<- struct{}) error {
		client, err := env.Client()
		if err != nil {
			return fmt.Errorf("create client: %w", err)
		}
		for _, o := range objects {
			if err := apply(ctx, client, o); err != nil {
				return err
			}
		}
		if written != nil {
			if err := written(ctx); err != nil {
				return err
			}
		}
		close(ready)
		<-ctx.Done()
		return nil
	}
}

// apply writes one object by server-side apply: an object that is already as
// it should be costs no write to the store.
func apply(ctx context.Context, client kubernetes.Interface, o runtime.Object) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode %T: %w", o, err)
	}
	opts := metav1.PatchOptions{FieldManager: "knarr", Force: new(bool)}
	*opts.Force = true
	switch o := o.(type) {
	case *rbacv1.ClusterRole:
		_, err = client.RbacV1().ClusterRoles().Patch(ctx, o.Name, types.ApplyPatchType, data, opts)
	case *rbacv1.ClusterRoleBinding:
		_, err = client.RbacV1().ClusterRoleBindings().Patch(ctx, o.Name, types.ApplyPatchType, data, opts)
	case *rbacv1.Role:
		_, err = client.RbacV1().Roles(o.Namespace).Patch(ctx, o.Name, types.ApplyPatchType, data, opts)
	case *rbacv1.RoleBinding:
		_, err = client.RbacV1().RoleBindings(o.Namespace).Patch(ctx, o.Name, types.ApplyPatchType, data, opts)
	case *corev1.Service:
		_, err = client.CoreV1().Services(o.Namespace).Patch(ctx, o.Name, types.ApplyPatchType, data, opts)
	default:
		return fmt.Errorf("apply %T: add-ons have no such objects", o)
	}
	if err != nil {
		return fmt.Errorf("apply %T: %w", o, err)
	}
	return nil
}
