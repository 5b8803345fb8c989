package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/watch"
)

// kind makes a user's own kind in a group named after the namespace, and returns
// its full name. The manifest says GROUP where that is to be. It goes with the
// test.
func (s *space) kind(plural, manifest string) string {
	s.t.Helper()
	full := plural + "." + s.ns + ".example.org"
	s.t.Cleanup(func() { _, _ = s.KubectlErr("delete", "crd", full, "--wait=false") })
	s.Apply(s.t, "", strings.ReplaceAll(manifest, "GROUP", s.ns+".example.org"))
	// kubectl fails on one that has no conditions yet, instead of waiting for them.
	s.WaitFor(s.t, full+" to be established", func(context.Context) (bool, error) {
		_, err := s.KubectlErr("wait", "crd/"+full, "--for=condition=established", "--timeout=10s")
		return err == nil, err
	})
	return full
}

// path is that of the namespace's objects of a kind in the API.
func (s *space) path(version, plural string) string {
	return "/apis/" + s.ns + ".example.org/" + version + "/namespaces/" + s.ns + "/" + plural
}

// call does a request and decodes what is answered.
func (s *space) call(verb, path, body string) (map[string]any, error) {
	req := s.Client.Discovery().RESTClient().Verb(verb).AbsPath(path).SetHeader("Accept", "application/json")
	if body != "" {
		kind := "application/json"
		if verb == "PATCH" {
			kind = "application/merge-patch+json"
		}
		req = req.SetHeader("Content-Type", kind).Body([]byte(body))
	}
	data, err := req.DoRaw(s.t.Context())
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", verb, path, err, data)
	}
	var o map[string]any
	return o, json.Unmarshal(data, &o)
}

// field is one of an object, by names with dots between.
func field(o map[string]any, path string) any {
	var v any = o
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

const ships = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: ships.GROUP
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.oars, statusReplicasPath: .status.oars, labelSelectorPath: .status.selector}
    selectableFields: [{jsonPath: .spec.port}]
    additionalPrinterColumns:
    - {name: Oars, type: integer, jsonPath: .spec.oars}
    - {name: Speed, type: number, jsonPath: .status.speed, priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A ship of the fleet.
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: "!has(self.oars) || !has(self.crew) || self.oars <= self.crew", messageExpression: "'%d oars need as many hands, not %d'.format([self.oars, self.crew])"}
            - {rule: "!has(oldSelf.keel) || has(self.keel)", message: a keel is not taken out}
            properties:
              oars: {type: integer, default: 8}
              crew: {type: integer, default: 12}
              port: {type: string, default: Kaupang}
              keel:
                type: string
                description: What the ship was built on.
                x-kubernetes-validations: [{rule: self == oldSelf, message: a keel is laid once}]
              holds:
                type: array
                maxItems: 10
                items: {type: object, required: [goods], properties: {goods: {type: string}, barrels: {type: integer, default: 1}}}
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [goods]
              anything: {type: object, x-kubernetes-preserve-unknown-fields: true}
            default: {}
          status:
            type: object
            properties: {speed: {type: number}, oars: {type: integer}, selector: {type: string}}
`

func TestKindValidatesByRulesThatAlsoSeeTheOldObject(t *testing.T) {
	s := newSpace(t)
	s.kind("ships", ships)
	refused := func(words, spec string) {
		t.Helper()
		_, err := s.call("POST", s.path("v1", "ships"), `{"apiVersion": "`+s.ns+`.example.org/v1", "kind": "Ship", "metadata": {"name": "wrong"}, "spec": `+spec+`}`)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("not refused with %q: %v", words, err)
		}
	}
	refused("20 oars need as many hands, not 12", `{"oars": 20}`)
	refused("Duplicate value", `{"holds": [{"goods": "wool"}, {"goods": "wool"}]}`)
	if _, err := s.call("POST", s.path("v1", "ships"), `{"apiVersion": "`+s.ns+`.example.org/v1", "kind": "Ship", "metadata": {"name": "knarr"}, "spec": {"keel": "oak"}}`); err != nil {
		t.Fatal(err)
	}
	for spec, words := range map[string]string{`{"keel": "pine"}`: "a keel is laid once", `{"keel": null}`: "a keel is not taken out"} {
		if _, err := s.call("PATCH", s.path("v1", "ships")+"/knarr", `{"spec": `+spec+`}`); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("not refused with %q: %v", words, err)
		}
	}
	if _, err := s.call("PATCH", s.path("v1", "ships")+"/knarr", `{"spec": {"oars": 10}}`); err != nil {
		t.Error(err)
	}
	// A rule that cannot work is told with the kind, not with its first object.
	broken := strings.ReplaceAll(strings.Replace(ships, "self.oars <= self.crew", "self.oars <= self.sails", 1), "GROUP", "broken-"+s.ns+".example.org")
	s.Write(t, "/tmp/"+s.ns+"/broken.yaml", broken)
	if _, err := s.KubectlErr("apply", "-f", "/tmp/"+s.ns+"/broken.yaml"); err == nil || !strings.Contains(err.Error(), "undefined field 'sails'") {
		t.Errorf("a rule about a field that is not there: %v", err)
	}
}

func TestKindHasDefaultsColumnsAndAnExplanation(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	ship := `
apiVersion: ` + s.ns + `.example.org/v1
kind: Ship
metadata: {name: knarr}
`
	s.apply(ship)
	want(t, "what defaults made of nothing", s.get(full+"/knarr", ".spec"), `{"crew":12,"oars":8,"port":"Kaupang"}`)
	s.kubectl("patch", full, "knarr", "--type=merge", "--patch", `{"spec": {"holds": [{"goods": "wool"}], "anything": {"deep": {"down": 1}}}}`)
	want(t, "a default in a list", s.get(full+"/knarr", ".spec.holds[0].barrels"), "1")
	want(t, "what no schema describes", s.get(full+"/knarr", ".spec.anything.deep.down"), "1")

	lines := strings.Split(s.kubectl("get", full), "\n")
	want(t, "the columns", strings.Join(strings.Fields(lines[0]), " "), "NAME OARS AGE")
	want(t, "the row", strings.Join(strings.Fields(lines[1])[:2], " "), "knarr 8")
	wantPart(t, "the wide columns", s.kubectl("get", full, "-o", "wide"), "SPEED")
	s.WaitFor(t, "the explanation", func(context.Context) (bool, error) {
		text, err := s.kubectlErr("explain", full+".spec.keel")
		return strings.Contains(text, "What the ship was built on"), err
	})
	s.Write(t, "/tmp/"+s.ns+"/typo.yaml", ship+"spec: {oarz: 3}\n")
	if _, err := s.kubectlErr("apply", "-f", "/tmp/"+s.ns+"/typo.yaml"); err == nil || !strings.Contains(err.Error(), `unknown field "spec.oarz"`) {
		t.Errorf("a misspelled field is not named: %v", err)
	}
	if _, err := s.call("POST", s.path("v1", "ships"), `{"apiVersion": "`+s.ns+`.example.org/v1", "kind": "Ship", "metadata": {"name": "pruned"}, "spec": {"oarz": 3}}`); err != nil {
		t.Fatal(err)
	}
	want(t, "an unknown field of a client that does not ask for strictness", s.get(full+"/pruned", ".spec.oarz"), "")
	wantPart(t, "discovery", s.Kubectl(t, "api-resources", "--api-group="+s.ns+".example.org", "--verbs=watch"), "Ship")
}

func TestKindHasStatusAndScaleOfTheirOwn(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	s.apply(`
apiVersion: ` + s.ns + `.example.org/v1
kind: Ship
metadata: {name: knarr}
status: {speed: 99}
`)
	ship := s.path("v1", "ships") + "/knarr"
	patch := func(path, body string) map[string]any {
		t.Helper()
		o, err := s.call("PATCH", path, body)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	want(t, "a status given at birth", s.get(full+"/knarr", ".status"), "")
	patch(ship+"/status", `{"status": {"speed": 7.5, "oars": 8, "selector": "ship=knarr"}, "spec": {"oars": 2}}`)
	o := patch(ship, `{"status": {"speed": 99}, "metadata": {"labels": {"a": "b"}}}`)
	want(t, "speed, oars and generation after changes to the status", fmt.Sprintf("%v %v %v", field(o, "status.speed"), field(o, "spec.oars"), field(o, "metadata.generation")), "7.5 8 1")
	s.kubectl("scale", full, "knarr", "--replicas=6")
	scale, err := s.call("GET", ship+"/scale", "")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the scale", fmt.Sprintf("%v %v %v", field(scale, "spec.replicas"), field(scale, "status.replicas"), field(scale, "status.selector")), "6 8 ship=knarr")
	want(t, "oars and generation after it was scaled", s.get(full+"/knarr", ".spec.oars")+" "+s.get(full+"/knarr", ".metadata.generation"), "6 2")
}

func TestKindIsWatchedAndSelectedByItsFields(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	watching := s.start("get", full, "--watch", "--output-watch-events", "--field-selector=spec.port=Hedeby", "--no-headers", "-o", "custom-columns=:.type,:.object.metadata.name")
	for _, ship := range []string{"elsewhere", "here"} {
		s.apply(`
apiVersion: ` + s.ns + `.example.org/v1
kind: Ship
metadata: {name: ` + ship + `}
spec: {port: ` + map[string]string{"elsewhere": "Birka", "here": "Hedeby"}[ship] + `}
`)
	}
	events := []string{strings.Join(strings.Fields(watching.line()), " ")}
	s.kubectl("patch", full, "elsewhere", "--type=merge", "--patch", `{"spec": {"port": "Hedeby"}}`)
	events = append(events, strings.Join(strings.Fields(watching.line()), " "))
	want(t, "the list", s.kubectl("get", full, "--field-selector=spec.port=Hedeby", "-o", "name"), "ship."+s.ns+".example.org/elsewhere\nship."+s.ns+".example.org/here\n")
	// What leaves the selection is as good as deleted.
	s.kubectl("patch", full, "here", "--type=merge", "--patch", `{"spec": {"port": "Birka"}}`)
	events = append(events, strings.Join(strings.Fields(watching.line()), " "))
	want(t, "the events", strings.Join(events, ", "), fmt.Sprintf("%s here, %s elsewhere, %s here", watch.Added, watch.Added, watch.Deleted))
}

func TestKindsComeAndGoWithTheirObjects(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	s.apply(`
apiVersion: ` + s.ns + `.example.org/v1
kind: Ship
metadata: {name: knarr, finalizers: [example.org/harbour]}
`)
	s.Kubectl(t, "delete", "crd", full, "--wait=false")
	s.Kubectl(t, "wait", "crd/"+full, "--for=condition=Terminating", "--timeout=60s")
	s.kubectl("wait", full+"/knarr", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=60s")
	s.kubectl("patch", full, "knarr", "--type=merge", "--patch", `{"metadata": {"finalizers": null}}`)
	s.Kubectl(t, "wait", "crd/"+full, "--for=delete", "--timeout=60s")
	s.WaitFor(t, "the kind to be unknown", func(context.Context) (bool, error) {
		_, err := s.Client.Discovery().ServerResourcesForGroupVersion(s.ns + ".example.org/v1")
		return fails(err, "could not find")
	})
	groups, err := s.Client.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.Groups {
		if g.Name == s.ns+".example.org" {
			t.Errorf("the group %s is still discovered", g.Name)
		}
	}
}
