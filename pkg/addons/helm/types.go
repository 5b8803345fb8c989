package helm

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The kinds are those of k3s' helm-controller, so that its users' files work as
// they are. A group of our own has the same, for those who have k3s' controller
// in the cluster, or its types from elsewhere.
const (
	k3sGroup   = "helm.cattle.io"
	ownGroup   = "helm.knarr.dev"
	version    = "v1"
	chartKind  = "HelmChart"
	configKind = "HelmChartConfig"

	// unmanaged on a HelmChart, with any value, has it left alone; managedBy leaves
	// it to the controller of that name.
	unmanaged = "helmcharts.helm.cattle.io/unmanaged"
	managedBy = "helmcharts.helm.cattle.io/managed-by"
)

func groups() []string { return []string{k3sGroup, ownGroup} }

func charts(group string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: "helmcharts"}
}

func configs(group string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: "helmchartconfigs"}
}

// helmChart is what is to be installed.
type helmChart struct {
	group string // that it is of

	metav1.ObjectMeta `json:"metadata"`
	Spec              chartSpec   `json:"spec"`
	Status            chartStatus `json:"status"`
}

// chartSpec has the fields that are honoured. Those about the job's pod mean
// nothing here, where there is none; helmVersion and bootstrap neither.
type chartSpec struct {
	overrides `json:",inline"`

	Chart string `json:"chart"`
	// Version is a version or a range of them. Default: the newest at the time of
	// the installation.
	Version string `json:"version"`
	// ChartContent is an archive in base64, in place of Chart.
	ChartContent string `json:"chartContent"`
	Repo         string `json:"repo"`
	// RepoCA is a certificate in PEM.
	RepoCA          string                       `json:"repoCA"`
	RepoCAConfigMap *corev1.LocalObjectReference `json:"repoCAConfigMap"`
	// TargetNamespace defaults to the HelmChart's own.
	TargetNamespace string `json:"targetNamespace"`
	CreateNamespace bool   `json:"createNamespace"`
	// Set is what `helm --set` sets, by path. It goes before all other values.
	Set map[string]intstr.IntOrString `json:"set"`
	// Timeout of each of Helm's waits. Default 5m.
	Timeout               *metav1.Duration             `json:"timeout"`
	AuthSecret            *corev1.LocalObjectReference `json:"authSecret"`
	AuthPassCredentials   bool                         `json:"authPassCredentials"`
	DockerRegistrySecret  *corev1.LocalObjectReference `json:"dockerRegistrySecret"`
	InsecureSkipTLSVerify bool                         `json:"insecureSkipTLSVerify"`
	PlainHTTP             bool                         `json:"plainHTTP"`
	TakeOwnership         bool                         `json:"takeOwnership"`
}

// overrides are what a HelmChartConfig may say of the HelmChart of its name.
type overrides struct {
	// ValuesContent is YAML.
	ValuesContent string          `json:"valuesContent"`
	Values        json.RawMessage `json:"values"`
	ValuesSecrets []valuesSecret  `json:"valuesSecrets"`
	// FailurePolicy is abort, reinstall or retry; see release.recover.
	FailurePolicy string `json:"failurePolicy"`
}

// valuesSecret has values in YAML under some of a Secret's keys.
type valuesSecret struct {
	Name string   `json:"name"`
	Keys []string `json:"keys"`
}

type helmChartConfig struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              overrides `json:"spec"`
}

type chartStatus struct {
	Conditions []metav1.Condition `json:"conditions"`
	// Revision is Helm's count of this release, and Chart what it is of: name-version.
	Revision int    `json:"revision,omitempty"`
	Chart    string `json:"chart,omitempty"`
}

// decode reads an object of one of our kinds.
func decode(o *unstructured.Unstructured, into any) error {
	text, err := o.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("read %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	return nil
}

// crds describe both kinds of both groups to the API server. The types of fields are checked,
// and what is not known is kept.
func crds() []*apiextensionsv1.CustomResourceDefinition {
	type properties = map[string]apiextensionsv1.JSONSchemaProps
	text := apiextensionsv1.JSONSchemaProps{Type: "string"}
	flag := apiextensionsv1.JSONSchemaProps{Type: "boolean"}
	keep := true
	reference := apiextensionsv1.JSONSchemaProps{Type: "object", Properties: properties{"name": text}}
	common := func(more properties) *apiextensionsv1.CustomResourceValidation {
		spec := properties{
			"valuesContent": text,
			"values":        {Type: "object", XPreserveUnknownFields: &keep},
			"failurePolicy": {Type: "string", Enum: []apiextensionsv1.JSON{{Raw: []byte(`"abort"`)}, {Raw: []byte(`"reinstall"`)}, {Raw: []byte(`"retry"`)}}},
			"valuesSecrets": {Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{
				Type: "object", XPreserveUnknownFields: &keep,
				Properties: properties{"name": text, "keys": {Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &text}}},
			}}},
		}
		for name, p := range more {
			spec[name] = p
		}
		return &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
			Type: "object",
			Properties: properties{
				"spec":   {Type: "object", Properties: spec, XPreserveUnknownFields: &keep},
				"status": {Type: "object", XPreserveUnknownFields: &keep},
			},
		}}
	}
	define := func(group, kind, plural string, schema *apiextensionsv1.CustomResourceValidation, columns ...apiextensionsv1.CustomResourceColumnDefinition) *apiextensionsv1.CustomResourceDefinition {
		return &apiextensionsv1.CustomResourceDefinition{
			TypeMeta:   metav1.TypeMeta{APIVersion: apiextensionsv1.SchemeGroupVersion.String(), Kind: "CustomResourceDefinition"},
			ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group, Labels: map[string]string{"app.kubernetes.io/managed-by": manager}},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{
				Group: group, Scope: apiextensionsv1.NamespaceScoped,
				Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: kind, ListKind: kind + "List", Plural: plural, Singular: plural[:len(plural)-1]},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
					Name: version, Served: true, Storage: true, Schema: schema, AdditionalPrinterColumns: columns,
					Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
				}},
			},
		}
	}
	column := func(name, path string) apiextensionsv1.CustomResourceColumnDefinition {
		return apiextensionsv1.CustomResourceColumnDefinition{Name: name, Type: "string", JSONPath: path}
	}
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, group := range groups() {
		all = append(all, define(group, chartKind, charts(group).Resource, common(properties{
			"chart": text, "version": text, "chartContent": text, "repo": text, "repoCA": text, "repoCAConfigMap": reference,
			"targetNamespace": text, "createNamespace": flag, "timeout": text, "authSecret": reference, "authPassCredentials": flag,
			"dockerRegistrySecret": reference, "insecureSkipTLSVerify": flag, "plainHTTP": flag, "takeOwnership": flag,
			"set": {Type: "object", AdditionalProperties: &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: &apiextensionsv1.JSONSchemaProps{XIntOrString: true}}},
		}),
			column("Chart", ".spec.chart"), column("Version", ".spec.version"), column("TargetNamespace", ".spec.targetNamespace"),
			column("Revision", ".status.revision"), column("Failed", ".status.conditions[?(@.type=='Failed')].status")),
			define(group, configKind, configs(group).Resource, common(nil)))
	}
	return all
}
