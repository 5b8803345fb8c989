package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// as asks for a form of an answer, and decodes it.
func (s *space) as(accept, path string, into any) error {
	data, err := s.Client.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(s.t.Context())
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func TestDiscoveryTellsOfAllGroupsAtOnce(t *testing.T) {
	s := newSpace(t)
	s.kind("ships", ships)
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	var core, groups apidiscoveryv2.APIGroupDiscoveryList
	if err := s.as(aggregated, "/api", &core); err != nil {
		t.Fatal(err)
	}
	find := func(l apidiscoveryv2.APIGroupDiscoveryList, group, resource string) *apidiscoveryv2.APIResourceDiscovery {
		for _, g := range l.Items {
			if g.Name != group {
				continue
			}
			for _, r := range g.Versions[0].Resources {
				if r.Resource == resource && g.Versions[0].Freshness == apidiscoveryv2.DiscoveryFreshnessCurrent {
					return &r
				}
			}
		}
		return nil
	}
	if pods := find(core, "", "pods"); pods == nil || !slices.Contains(pods.Verbs, "watch") || len(pods.Subresources) < 8 {
		t.Errorf("of pods is told %+v", pods)
	}
	s.WaitFor(t, "the user's kind", func(context.Context) (bool, error) {
		err := s.as(aggregated, "/apis", &groups)
		return find(groups, s.ns+".example.org", "ships") != nil, err
	})
	if deployments := find(groups, "apps", "deployments"); deployments == nil || deployments.ResponseKind.Kind != "Deployment" {
		t.Errorf("of deployments is told %+v", deployments)
	}

	// The same in many small documents, for clients of old.
	var list metav1.APIGroupList
	if err := s.as("application/json", "/apis", &list); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apps", "networking.k8s.io", "resource.k8s.io", s.ns + ".example.org"} {
		if !slices.ContainsFunc(list.Groups, func(g metav1.APIGroup) bool { return g.Name == name }) {
			t.Errorf("the group %s is missing", name)
		}
	}
	for _, g := range list.Groups {
		if !slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v == g.PreferredVersion }) {
			t.Errorf("the preferred version of %s is %v, which it has not", g.Name, g.PreferredVersion)
		}
	}
}

func TestListsComeAsTables(t *testing.T) {
	s := newSpace(t)
	s.client()
	const table = "application/json;as=Table;g=meta.k8s.io;v=v1"
	var pods metav1.Table
	if err := s.as(table, "/api/v1/namespaces/"+s.ns+"/pods", &pods); err != nil {
		t.Fatal(err)
	}
	if len(pods.Rows) != 1 || pods.ColumnDefinitions[0].Name != "Name" || pods.Rows[0].Cells[0] != "client" {
		t.Errorf("the table is %+v", pods)
	}
	_, err := s.Client.Discovery().RESTClient().Post().AbsPath("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").SetHeader("Accept", table).
		SetHeader("Content-Type", "application/json").Body([]byte(`{"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}`)).DoRaw(t.Context())
	if !apierrors.IsNotAcceptable(err) {
		t.Errorf("a question as a table: %v", err)
	}
}

func TestUnknownFieldsAreRefusedToldOrDropped(t *testing.T) {
	s := newSpace(t)
	s.kind("ships", ships)
	heard := &warnings{}
	client := s.clientFor(s.REST, func(c *rest.Config) { c.WarningHandler = heard })
	send := func(path, level, body string) error {
		return client.Discovery().RESTClient().Post().AbsPath(path).Param("fieldValidation", level).Param("dryRun", "All").
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
	}
	for path, what := range map[string]struct{ body, unknown, duplicate string }{
		"/api/v1/namespaces/" + s.ns + "/services": {
			`{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a", "colour": "red"}, "spec": {"ports": [{"port": 80}], "type": "ClusterIP", "type": "ClusterIP"}}`,
			`unknown field "metadata.colour"`, `duplicate field "spec.type"`,
		},
		s.path("v1", "ships"): {
			`{"kind": "Ship", "apiVersion": "` + s.ns + `.example.org/v1", "metadata": {"name": "a", "colour": "red"}, "spec": {"anything": {"x": 1}, "oars": 2, "oars": 2}}`,
			`unknown field "metadata.colour"`, `duplicate field "spec.oars"`,
		},
	} {
		err := send(path, "Strict", what.body)
		if err == nil || !strings.Contains(err.Error(), what.unknown) || !strings.Contains(err.Error(), what.duplicate) {
			t.Errorf("%s: strictly: %v", path, err)
		}
		heard.take()
		if err := send(path, "Warn", what.body); err != nil {
			t.Errorf("%s: with warnings: %v", path, err)
		}
		said := heard.take()
		wantPart(t, "the warnings of "+path, said, what.unknown)
		wantPart(t, "the warnings of "+path, said, what.duplicate)
		if err := send(path, "Ignore", what.body); err != nil {
			t.Errorf("%s: carelessly: %v", path, err)
		}
		want(t, "the warnings of "+path, heard.take(), "")
	}
}

func TestPublishedSchemaFollowsTheVersionsOfAKind(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	published := func(version string) bool {
		data, err := s.Client.Discovery().RESTClient().Get().AbsPath("/openapi/v3/apis/" + s.ns + ".example.org/" + version).DoRaw(t.Context())
		return err == nil && strings.Contains(string(data), "A ship of the fleet.")
	}
	s.WaitFor(t, "the schema", func(context.Context) (bool, error) { return published("v1"), nil })
	s.Kubectl(t, "patch", "crd", full, "--type=json", "--patch", `[{"op": "copy", "from": "/spec/versions/0", "path": "/spec/versions/1"}, {"op": "replace", "path": "/spec/versions/1/name", "value": "v2"}, {"op": "replace", "path": "/spec/versions/0/storage", "value": false}, {"op": "replace", "path": "/spec/versions/0/served", "value": false}]`)
	s.WaitFor(t, "the schema of the new version", func(context.Context) (bool, error) { return published("v2"), nil })
	if _, err := s.call("GET", s.path("v1", "ships"), ""); err == nil {
		t.Error("the version that is no longer served is served")
	}
	s.WaitFor(t, "the schema in the older form", func(context.Context) (bool, error) {
		data, err := s.Client.Discovery().RESTClient().Get().AbsPath("/openapi/v2").DoRaw(t.Context())
		return strings.Contains(string(data), "/apis/"+s.ns+".example.org/v2/") && !strings.Contains(string(data), "/apis/"+s.ns+".example.org/v1/"), err
	})
}

func TestEveryBuiltInKindIsDescribed(t *testing.T) {
	s := newSpace(t)
	rest := s.Client.Discovery().RESTClient()
	index, err := s.Client.Discovery().OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	groups, err := s.Client.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			path := "apis/" + v.GroupVersion
			if g.Name == "" {
				path = "api/" + v.GroupVersion
			}
			// Other tests' kinds come and go.
			if strings.HasSuffix(g.Name, ".example.org") {
				continue
			}
			doc, ok := index[path]
			if !ok {
				t.Errorf("%s is served and not described", path)
				continue
			}
			for _, form := range []string{"application/json", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"} {
				data, err := doc.Schema(form)
				if err != nil || len(data) < 100 {
					t.Errorf("%s as %s: %d bytes, %v", path, form, len(data), err)
				}
			}
		}
	}
	// With the index's hash a document may be kept for ever; another leads to it.
	var status int
	err = rest.Get().RequestURI(index["apis/apps/v1"].ServerRelativeURL()).Do(t.Context()).StatusCode(&status).Error()
	if err != nil || status != http.StatusOK {
		t.Errorf("the document of apps/v1: status %d, %v", status, err)
	}
	data, err := rest.Get().AbsPath("/openapi/v2").DoRaw(t.Context())
	for _, kind := range []string{"io.k8s.api.apps.v1.Deployment", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition", "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService"} {
		if err != nil || !strings.Contains(string(data), `"`+kind+`":`) {
			t.Errorf("OpenAPI v2 does not describe %s: %v", kind, err)
		}
	}
	wantPart(t, "what kubectl says of a field", s.Kubectl(t, "explain", "deployment.spec.replicas"), "Number of desired pods.")
}
