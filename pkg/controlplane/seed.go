package controlplane

import (
	"errors"
	"fmt"
	"os"
	"time"
	_ "unsafe" // for go:linkname

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	flowcontrolbootstrap "k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationhelper "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-aggregator/pkg/controllers/autoregister"
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app" // holds apiVersionPriorities
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	internalscheduling "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/pkg/controlplane" // also installs every API group in the scheme
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// seed encodes the objects that every cluster starts with, as the API server
// would have stored them. A new store that has them from birth saves some two
// hundred requests before the first client can be let in: without the roles
// nobody but an administrator may do anything.
//
// bootstrap compares them with what this version wants at every start, so what
// is forgotten here only costs time.
func seed(p *pki.PKI) ([]datastore.KeyValue, error) {
	rootCA, err := os.ReadFile(p.ServerCA.TrustPath)
	if err != nil {
		return nil, fmt.Errorf("read serving authority: %w", err)
	}
	s := &seeder{now: metav1.NewTime(time.Now().UTC().Truncate(time.Second))}
	for _, ns := range systemNamespaces() {
		s.add("namespaces/"+ns, corev1.SchemeGroupVersion, &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{corev1.LabelMetadataName: ns}},
			Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		})
		s.add("serviceaccounts/"+ns+"/default", corev1.SchemeGroupVersion, defaultServiceAccount(ns))
		s.add("configmaps/"+ns+"/kube-root-ca.crt", corev1.SchemeGroupVersion, rootCertificate(ns, rootCA))
	}
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		s.add("clusterroles/"+r.Name, rbacv1.SchemeGroupVersion, &r)
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		s.add("clusterrolebindings/"+b.Name, rbacv1.SchemeGroupVersion, &b)
	}
	own := ownPolicy()
	for _, r := range own.clusterRoles {
		s.add("clusterroles/"+r.Name, rbacv1.SchemeGroupVersion, r)
	}
	for _, b := range own.clusterBindings {
		s.add("clusterrolebindings/"+b.Name, rbacv1.SchemeGroupVersion, b)
	}
	for _, r := range own.roles {
		s.add("roles/"+r.Namespace+"/"+r.Name, rbacv1.SchemeGroupVersion, r)
	}
	for _, b := range own.bindings {
		s.add("rolebindings/"+b.Namespace+"/"+b.Name, rbacv1.SchemeGroupVersion, b)
	}
	for ns, roles := range bootstrappolicy.NamespaceRoles() {
		for _, r := range roles {
			s.add("roles/"+ns+"/"+r.Name, rbacv1.SchemeGroupVersion, &r)
		}
	}
	for ns, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bindings {
			s.add("rolebindings/"+ns+"/"+b.Name, rbacv1.SchemeGroupVersion, &b)
		}
	}
	for _, pc := range internalscheduling.SystemPriorityClasses() {
		s.add("priorityclasses/"+pc.Name, schedulingv1.SchemeGroupVersion, pc.DeepCopy())
	}
	// Upstream keeps these up to date as long as they bear the annotation; see
	// pkg/registry/flowcontrol/ensurer.
	managed := map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"}
	for _, pl := range append(flowcontrolbootstrap.MandatoryPriorityLevelConfigurations[:2:2], flowcontrolbootstrap.SuggestedPriorityLevelConfigurations...) {
		pl = pl.DeepCopy()
		pl.Annotations = managed
		s.add("prioritylevelconfigurations/"+pl.Name, flowcontrolv1.SchemeGroupVersion, pl)
	}
	for _, fs := range append(flowcontrolbootstrap.MandatoryFlowSchemas[:2:2], flowcontrolbootstrap.SuggestedFlowSchemas...) {
		fs = fs.DeepCopy()
		fs.Annotations = managed
		s.add("flowschemas/"+fs.Name, flowcontrolv1.SchemeGroupVersion, fs)
	}
	s.apiServices()
	return s.out, s.err
}

// apiServices adds what the aggregation layer registers for the API groups of
// this process, each with a write and a second one for its status. It corrects
// the list at every start, as upstream does.
func (s *seeder) apiServices() {
	enabled := controlplane.DefaultAPIResourceConfigSource()
	for gv, priority := range apiVersionPriorities {
		if !enabled.GroupVersionConfigs[gv] && gv.Group != "apiextensions.k8s.io" {
			continue
		}
		as := &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{
				Name:   gv.Version + "." + gv.Group,
				Labels: map[string]string{autoregister.AutoRegisterManagedLabel: "onstart"},
			},
			Spec: apiregistrationv1.APIServiceSpec{
				Group: gv.Group, Version: gv.Version,
				GroupPriorityMinimum: priority.Group, VersionPriority: priority.Version,
			},
			Status: apiregistrationv1.APIServiceStatus{
				Conditions: []apiregistrationv1.APIServiceCondition{apiregistrationhelper.NewLocalAvailableAPIServiceCondition()},
			},
		}
		s.identify(as)
		s.encode("apiregistration.k8s.io/apiservices/"+as.Name, aggregatorscheme.Codecs.LegacyCodec(apiregistrationv1.SchemeGroupVersion), as)
	}
}

// apiVersionPriorities orders the API groups in discovery. Upstream does not
// export it; TestSeedIsWhatTheAPIServerWouldWrite tells when it moves.
//
//go:linkname apiVersionPriorities k8s.io/kubernetes/cmd/kube-apiserver/app.apiVersionPriorities
var apiVersionPriorities map[schema.GroupVersion]controlplaneapiserver.APIServicePriority

func defaultServiceAccount(namespace string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: namespace}}
}

// rootCertificate is what pods verify the API server by. The annotation is the
// controller's own, see pkg/controller/certificates/rootcacertpublisher.
func rootCertificate(namespace string, ca []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt", Namespace: namespace, Annotations: map[string]string{
			"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
		}},
		Data: map[string]string{"ca.crt": string(ca)},
	}
}

type seeder struct {
	now metav1.Time
	out []datastore.KeyValue
	err error
}

// object is what the scheme encodes and the API server gives an identity.
type object interface {
	runtime.Object
	metav1.Object
}

func (s *seeder) add(key string, gv schema.GroupVersion, o object) {
	s.identify(o)
	legacyscheme.Scheme.Default(o)
	info, ok := runtime.SerializerInfoForMediaType(legacyscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		s.err = errors.Join(s.err, fmt.Errorf("encode %s: no protobuf serializer", key))
		return
	}
	s.encode(key, legacyscheme.Codecs.EncoderForVersion(info.Serializer, gv), o)
}

func (s *seeder) identify(o object) {
	o.SetUID(uuid.NewUUID())
	o.SetCreationTimestamp(s.now)
}

func (s *seeder) encode(key string, e runtime.Encoder, o runtime.Object) {
	data, err := runtime.Encode(e, o)
	if err != nil {
		s.err = errors.Join(s.err, fmt.Errorf("encode %s: %w", key, err))
		return
	}
	s.out = append(s.out, datastore.KeyValue{Key: "/registry/" + key, Value: data})
}
