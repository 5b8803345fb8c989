package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

const manager = "knarr"

// managed is the label of what is ours.
func managed() map[string]string { return map[string]string{"app.kubernetes.io/managed-by": manager} }

// serviceName is the APIService that says who answers for the group.
var serviceName = v1beta1.SchemeGroupVersion.Version + "." + v1beta1.SchemeGroupVersion.Group

// apiService says that this process does: one that names no Service is local.
func apiService() *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		TypeMeta:   metav1.TypeMeta{APIVersion: apiregistrationv1.SchemeGroupVersion.String(), Kind: "APIService"},
		ObjectMeta: metav1.ObjectMeta{Name: serviceName, Labels: managed()},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: v1beta1.SchemeGroupVersion.Group, Version: v1beta1.SchemeGroupVersion.Version,
			GroupPriorityMinimum: 100, VersionPriority: 100,
		},
	}
}

// reader lets those who may look at pods look at what they use, as
// metrics-server's own manifest does.
func reader() *rbacv1.ClusterRole {
	labels := managed()
	maps.Copy(labels, map[string]string{
		"rbac.authorization.k8s.io/aggregate-to-admin": "true",
		"rbac.authorization.k8s.io/aggregate-to-edit":  "true",
		"rbac.authorization.k8s.io/aggregate-to-view":  "true",
	})
	return &rbacv1.ClusterRole{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole"},
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: labels},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1beta1.SchemeGroupVersion.Group}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"},
		}},
	}
}

// claim has the cluster ask this process, now and whenever nobody else answers
// for the group any more. A metrics server of the user's own names a Service in
// the APIService, and goes before. The channel is closed when claiming has ended,
// after ctx.
func claim(ctx context.Context, cfg *rest.Config, log *slog.Logger) (<-chan struct{}, error) {
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	services, err := servicesOf(cfg)
	if err != nil {
		return nil, err
	}
	role, err := json.Marshal(reader())
	if err != nil {
		return nil, fmt.Errorf("encode role: %w", err)
	}
	if _, err := kube.RbacV1().ClusterRoles().Patch(ctx, reader().Name, types.ApplyPatchType, role, metav1.PatchOptions{FieldManager: manager, Force: new(true)}); err != nil {
		return nil, fmt.Errorf("apply role %s: %w", reader().Name, err)
	}
	create := func() error {
		_, err := services.ApiregistrationV1().APIServices().Create(ctx, apiService(), metav1.CreateOptions{FieldManager: manager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create APIService %s: %w", serviceName, err)
		}
		return nil
	}
	if err := create(); err != nil {
		return nil, err
	}
	whose := func(o any) {
		if s, ok := o.(*apiregistrationv1.APIService); ok && s.Spec.Service != nil {
			log.Info("another metrics server answers for "+v1beta1.SchemeGroupVersion.Group, "service", s.Spec.Service.Namespace+"/"+s.Spec.Service.Name)
		}
	}
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, serviceName)
	lw := cache.NewListWatchFromClient(services.ApiregistrationV1().RESTClient(), "apiservices", "", only)
	_, watch := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &apiregistrationv1.APIService{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: whose,
			UpdateFunc: func(before, now any) {
				was, ok := before.(*apiregistrationv1.APIService)
				if ok && was.Spec.Service == nil {
					whose(now)
				}
			},
			DeleteFunc: func(any) {
				if err := create(); err != nil && ctx.Err() == nil {
					log.Warn("nobody answers for metrics", "err", err)
				}
			},
		},
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch.RunWithContext(ctx)
	}()
	return done, nil
}

// release takes our APIService away. That of a user's own stays.
func release(ctx context.Context, cfg *rest.Config) error {
	services, err := servicesOf(cfg)
	if err != nil {
		return err
	}
	s, err := services.ApiregistrationV1().APIServices().Get(ctx, serviceName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && s.Spec.Service != nil {
		return nil
	}
	if err == nil {
		err = services.ApiregistrationV1().APIServices().Delete(ctx, serviceName, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete APIService %s: %w", serviceName, err)
	}
	return nil
}

func servicesOf(cfg *rest.Config) (aggregator.Interface, error) {
	// The group knows no protobuf in upstream's client.
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType, cfg.AcceptContentTypes = "application/json", "application/json"
	c, err := aggregator.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create client of APIServices: %w", err)
	}
	return c, nil
}
