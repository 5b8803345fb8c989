package e2e

import (
	"context"
	"strings"
	"testing"
)

// crates are kinds whose schemas say little: nothing, nothing of the spec, or
// that a part is an object of any kind.
const crates = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: PLURAL.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: PLURAL, singular: SINGULAR, kind: KIND}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: SCHEMA}`

func TestKindsWithoutASchemaTakeWhatTheyAreGiven(t *testing.T) {
	s := newSpace(t)
	for singular, c := range map[string]struct{ schema, explained string }{
		"bare":   {`{type: object, x-kubernetes-preserve-unknown-fields: true}`, "KIND:"},
		"partly": {`{type: object, description: a crate, properties: {spec: {type: object, description: what is in it, x-kubernetes-preserve-unknown-fields: true}}}`, "a crate"},
		"holder": {`{type: object, properties: {spec: {type: object, properties: {held: {type: object, description: anything, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}}}}}`, "spec"},
	} {
		kind := strings.ToUpper(singular[:1]) + singular[1:]
		full := s.kind(singular+"s", strings.NewReplacer("PLURAL", singular+"s", "SINGULAR", singular, "KIND", kind, "SCHEMA", c.schema).Replace(crates))
		// kubectl validates by the published schema.
		s.WaitFor(t, "kubectl to explain "+full, func(context.Context) (bool, error) {
			out, err := s.KubectlErr("explain", full)
			return strings.Contains(out, c.explained), err
		})
		object := func(value string) string {
			return `{"apiVersion": "` + s.ns + `.example.org/v1", "kind": "` + kind + `", "metadata": {"name": "a"}, "spec": {"held": {"apiVersion": "v1", "kind": "Any", "metadata": {"name": "b"}, "unknown": "` + value + `"}}}`
		}
		for _, value := range []string{"first", "second"} {
			s.apply(object(value))
			want(t, "what is kept by "+full, s.get(full+"/a", ".spec.held.unknown"), value)
		}
	}
	// Metadata has a schema everywhere.
	err := s.Client.Discovery().RESTClient().Post().AbsPath(s.path("v1", "holders")).Param("fieldValidation", "Strict").
		SetHeader("Content-Type", "application/json").Body([]byte(`{"apiVersion": "` + s.ns + `.example.org/v1", "kind": "Holder",
		"metadata": {"name": "b", "colour": "red"}, "spec": {"held": {"apiVersion": "v1", "kind": "Any", "metadata": {"name": "c", "weight": 1}}}}`)).
		Do(t.Context()).Error()
	for _, words := range []string{`unknown field "metadata.colour"`, `unknown field "spec.held.metadata.weight"`} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the answer has no %s: %v", words, err)
		}
	}
}
