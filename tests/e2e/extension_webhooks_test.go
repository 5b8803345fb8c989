package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// serveTLS runs a server of the test box as a pod behind a Service of its name,
// with a certificate for that, and files beside it. It returns the authority
// that API servers are to believe, in base64.
func (s *space) serveTLS(name string, command []string, files ...string) string {
	s.t.Helper()
	c := harness.ServingCertificate(s.t, name+"."+s.ns+".svc")
	s.create(
		kube.Secret(name, append([]string{"tls.crt", string(c.Cert), "tls.key", string(c.Key)}, files...)...),
		kube.Pod(name, kube.Testbox(command...), kube.Expose("https", 8443), kube.Ready(kube.TCP(8443)), kube.Mount("tls", "/tls", kube.Secrets(name))),
		kube.Service(name, kube.Port(443, 8443)),
	)
	s.running(name)
	s.kubectl("wait", "endpointslice", "-l", "kubernetes.io/service-name="+name, "--for=jsonpath={.endpoints[0].conditions.ready}=true", "--timeout=60s")
	return base64.StdEncoding.EncodeToString(c.CA)
}

// hook is a webhook configuration for what happens in the test's namespace. The
// kind is mutating or validating.
func (s *space) hook(kind, name, ca, path, rules, more string) {
	s.t.Helper()
	s.t.Cleanup(func() { _, _ = s.KubectlErr("delete", strings.ToLower(kind)+"webhookconfiguration", s.ns+"-"+name) })
	s.Apply(s.t, "", strings.NewReplacer("KIND", kind, "NAME", s.ns+"-"+name, "NS", s.ns, "CA", ca, "PATH", path, "RULES", rules, "MORE", more).Replace(`
apiVersion: admissionregistration.k8s.io/v1
kind: KINDWebhookConfiguration
metadata: {name: NAME}
webhooks:
- name: hooks.example.org
  clientConfig: {service: {namespace: NS, name: hooks, path: PATH}, caBundle: CA}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NS}}
  rules: [RULES]
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 30
  MORE
`))
}

const (
	configMaps = `{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE, DELETE], resources: [configmaps]}`
	podsHook   = `{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}`
)

// untilForbidden waits until a configuration that was just written counts.
func (s *space) untilForbidden(words string, args ...string) {
	s.t.Helper()
	s.WaitFor(s.t, "to be forbidden to "+strings.Join(args, " "), func(context.Context) (bool, error) {
		_, err := s.kubectlErr(args...)
		return fails(err, words)
	})
}

func TestWebhookInAPodChangesAndForbids(t *testing.T) {
	s := newSpace(t)
	full := s.kind("ships", ships)
	ca := s.serveTLS("hooks", []string{"webhook"})
	shipsHook := `, {apiGroups: ["` + s.ns + `.example.org"], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [ships]}`
	s.hook("Mutating", "label", ca, "/label", podsHook+", "+strings.Replace(configMaps, ", DELETE", "", 1)+shipsHook, "reinvocationPolicy: IfNeeded")
	s.WaitFor(t, "the webhook to be asked", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("create", "configmap", "any", "--dry-run=server", "-o", "jsonpath={.metadata.labels.touched}")
		return out == "webhook", err
	})
	s.client()
	want(t, "the label of a pod", s.get("pod/client", ".metadata.labels.touched"), "webhook")
	s.kubectl("create", "configmap", "precious")
	ship := s.file("ship.yaml", `{"apiVersion": "`+s.ns+`.example.org/v1", "kind": "Ship", "metadata": {"name": "knarr"}}`)
	s.kubectl("create", "-f", ship)
	want(t, "the label of a user's kind", s.get(full+"/knarr", ".metadata.labels.touched"), "webhook")

	// Which objects are sent is said by expressions too.
	s.hook("Validating", "deny", ca, "/deny", configMaps+shipsHook, `matchConditions: [{name: not-free, expression: "request.name != 'free'"}]`)
	s.untilForbidden("the webhook forbids to create configmaps", "create", "configmap", "any", "--dry-run=server")
	for _, args := range [][]string{{"label", "configmap", "precious", "a=b"}, {"delete", "configmap", "precious"}, {"label", full, "knarr", "a=b"}} {
		if _, err := s.kubectlErr(args...); err == nil || !strings.Contains(err.Error(), `admission webhook "hooks.example.org" denied the request`) {
			t.Errorf("%v is not forbidden: %v", args, err)
		}
	}
	s.kubectl("create", "configmap", "free")
	s.Kubectl(t, "patch", "validatingwebhookconfiguration", s.ns+"-deny", "--type=json", "--patch", `[{"op": "replace", "path": "/webhooks/0/rules", "value": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/attach", "pods/exec"]}]}]`)
	s.untilForbidden("the webhook forbids to connect pods/exec", "exec", "client", "--", "true")
	s.kubectl("delete", "configmap", "precious")
	wantPart(t, "what the webhook saw", s.kubectl("logs", "hooks"), "/deny create configmaps any")
}

const chests = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: chests.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: chests, singular: chest, kind: Chest}
  versions:
  - {name: v1, served: true, storage: true, schema: &schema {openAPIV3Schema: {type: object, properties: {data: {type: object, properties: {kept: {type: string}, mark: {type: string}}}}}}}
  - {name: v2, served: true, storage: false, schema: *schema}
`

// Webhooks see objects of users' kinds before they are pruned and stored, in
// whatever version, and the kinds themselves.
func TestWebhooksStandBeforeKindsAndTheirObjects(t *testing.T) {
	s := newSpace(t)
	full := s.kind("chests", chests)
	ca := s.serveTLS("hooks", []string{"webhook"})
	s.hook("Mutating", "fill", ca, "/fill", `{apiGroups: ["`+s.ns+`.example.org"], apiVersions: ["*"], operations: [CREATE], resources: [chests]}`, "")
	chest := func(name string) string {
		return s.file(name+".yaml", `{"apiVersion": "`+s.ns+`.example.org/v1", "kind": "Chest", "metadata": {"name": "`+name+`"}, "data": {"mark": "x"}}`)
	}
	probe := chest("any")
	s.WaitFor(t, "the webhook to be asked", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("create", "-f", probe, "--dry-run=server", "-o", "jsonpath={.data.kept}")
		return out == "webhook", err
	})
	s.kubectl("create", "-f", chest("full"))
	want(t, "what the webhook filled in, as far as the kind has it", s.get(full+"/full", ".data"), `{"kept":"webhook"}`)

	// What was stored in one version is changed after another became the stored one.
	s.Kubectl(t, "patch", "crd", full, "--type=json", "--patch", `[{"op": "replace", "path": "/spec/versions/0/storage", "value": false}, {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]`)
	s.WaitFor(t, "an object in the new version", func(context.Context) (bool, error) {
		_, err := s.kubectlErr("patch", full, "full", "--type=merge", "--patch", `{"data": {"mark": "changed"}}`)
		return err == nil, err
	})
	want(t, "the object after that", s.get(full+"/full", ".data"), `{"kept":"webhook","mark":"changed"}`)
	want(t, "versions that are stored", s.get("crd/"+full, ".status.storedVersions"), `["v1","v2"]`)

	s.hook("Validating", "kinds", ca, "/deny", `{apiGroups: [apiextensions.k8s.io], apiVersions: [v1], operations: [CREATE], resources: [customresourcedefinitions]}`,
		`matchConditions: [{name: ours, expression: "request.name.endsWith('`+s.ns+`.example.org')"}]`)
	s.untilForbidden("the webhook forbids to create customresourcedefinitions", "create", "--dry-run=server", "-f", s.file("barrels.yaml", strings.NewReplacer("chest", "barrel", "Chest", "Barrel", "GROUP", s.ns+".example.org").Replace(chests)))
}

func TestWebhookWarns(t *testing.T) {
	s := newSpace(t)
	ca := s.serveTLS("hooks", []string{"webhook"})
	s.hook("Validating", "warn", ca, "/warn", configMaps, "")
	heard := &warnings{}
	client := s.clientFor(s.REST, func(c *rest.Config) { c.WarningHandler = heard })
	s.WaitFor(t, "the warning", func(ctx context.Context) (bool, error) {
		err := client.CoreV1().RESTClient().Post().Namespace(s.ns).Resource("configmaps").Param("dryRun", "All").
			Body(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "any"}}).Do(ctx).Error()
		return strings.Contains(heard.take(), "the webhook frowns on create configmaps"), err
	})
}

func TestWebhookThatFailsForbidsOrIsPassedBy(t *testing.T) {
	s := newSpace(t)
	ca := s.serveTLS("hooks", []string{"webhook"})
	create := []string{"create", "configmap", "any", "--dry-run=server"}
	s.hook("Validating", "late", ca, "/stall", configMaps, "failurePolicy: Fail")
	set := func(patch string) {
		t.Helper()
		s.Kubectl(t, "patch", "validatingwebhookconfiguration", s.ns+"-late", "--type=json", "--patch", `[`+patch+`]`)
	}
	set(`{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 1}`)
	s.untilForbidden("context deadline exceeded", create...)
	ignored := func(what string) {
		t.Helper()
		set(`{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}`)
		s.WaitFor(t, what+" to be passed by", func(context.Context) (bool, error) {
			_, err := s.kubectlErr(create...)
			return err == nil, err
		})
	}
	ignored("a slow webhook")

	// Nobody is there.
	set(`{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"},{"op": "replace", "path": "/webhooks/0/clientConfig/service/name", "value": "nobody"}`)
	s.untilForbidden(`service "nobody" not found`, create...)
	ignored("a webhook that is not there")

	// It shows a certificate that the configuration's authority did not sign.
	stranger := base64.StdEncoding.EncodeToString(harness.ServingCertificate(t, "stranger").CA)
	set(`{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"},{"op": "replace", "path": "/webhooks/0/clientConfig/service/name", "value": "hooks"},{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "` + stranger + `"}`)
	s.untilForbidden("certificate signed by unknown authority", create...)
	// Configurations of webhooks are never sent to webhooks: the way out stays open.
	s.Kubectl(t, "delete", "validatingwebhookconfiguration", s.ns+"-late")
	s.WaitFor(t, "its end", func(context.Context) (bool, error) {
		_, err := s.kubectlErr(create...)
		return err == nil, err
	})
}

func TestWebhookWithAConditionThatCannotWorkIsRefused(t *testing.T) {
	s := newSpace(t)
	_, err := s.KubectlErr("create", "-f", s.file("hook.yaml", `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: `+s.ns+`}
webhooks:
- name: hooks.example.org
  clientConfig: {url: "https://127.0.0.1:9"}
  rules: [`+configMaps+`]
  admissionReviewVersions: [v1]
  sideEffects: None
  matchConditions: [{name: broken, expression: "request.name =="}]
`))
	if err == nil || !strings.Contains(err.Error(), "compilation failed") {
		t.Errorf("a condition with a mistake: %v", err)
	}
}

// file writes a manifest in the node, and returns its name.
func (s *space) file(name, text string) string {
	s.t.Helper()
	path := "/tmp/" + s.ns + "/" + name
	s.Write(s.t, path, text)
	return path
}

func TestObjectsAreConvertedByAWebhookInAPod(t *testing.T) {
	s := newSpace(t)
	ca := s.serveTLS("hooks", []string{"webhook"})
	version := func(name string, storage bool, fields ...string) string {
		return fmt.Sprintf(`
  - name: %s
    served: true
    storage: %v
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {%s: {type: string}}}}}}`, name, storage, strings.Join(fields, ": {type: string}, "))
	}
	s.kind("skippers", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: skippers.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: skippers, singular: skipper, kind: Skipper}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {service: {namespace: `+s.ns+`, name: hooks, path: /convert}, caBundle: `+ca+`}
  versions:`+version("v1", true, "name")+version("v2", false, "first", "last"))
	enter := func(version, name, spec string) {
		t.Helper()
		s.WaitFor(t, "the kind's "+version, func(context.Context) (bool, error) {
			_, err := s.call("POST", s.path(version, "skippers"), `{"apiVersion": "`+s.ns+`.example.org/`+version+`", "kind": "Skipper", "metadata": {"name": "`+name+`"}, "spec": `+spec+`}`)
			return err == nil, err
		})
	}
	enter("v1", "leif", `{"name": "Leif Eriksson"}`)
	enter("v2", "bjarni", `{"first": "Bjarni", "last": "Herjolfsson"}`)
	specs := func(version string) string {
		t.Helper()
		list, err := s.call("GET", s.path(version, "skippers"), "")
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		items, _ := list["items"].([]any)
		for _, i := range items {
			o, _ := i.(map[string]any)
			all = append(all, fmt.Sprint(field(o, "spec")))
		}
		return strings.Join(all, " ")
	}
	want(t, "the list in v1", specs("v1"), "map[name:Bjarni Herjolfsson] map[name:Leif Eriksson]")
	want(t, "the list in v2", specs("v2"), "map[first:Bjarni last:Herjolfsson] map[first:Leif last:Eriksson]")
	if _, err := s.call("PATCH", s.path("v2", "skippers")+"/leif", `{"spec": {"first": "Thorvald"}}`); err != nil {
		t.Fatal(err)
	}
	o, err := s.call("GET", s.path("v1", "skippers")+"/leif", "")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "a change in v2, as v1 sees it", fmt.Sprint(field(o, "spec.name")), "Thorvald Eriksson")
	enter("v1", "nameless", `{"name": "Ari"}`)
	if _, err := s.call("GET", s.path("v2", "skippers")+"/nameless", ""); err == nil || !strings.Contains(err.Error(), "is no first and last name") {
		t.Errorf("what the webhook cannot convert: %v", err)
	}
	// Nobody else shall stumble over it.
	if _, err := s.call("DELETE", s.path("v1", "skippers")+"/nameless", ""); err != nil {
		t.Error(err)
	}
}
