package e2e

import (
	"context"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// policy applies policies, in which NS is the test's namespace and their own
// name; they go with the test.
func (s *space) policy(kind, manifest string) {
	s.t.Helper()
	s.t.Cleanup(func() { _, _ = s.KubectlErr("delete", kind+","+kind+"binding", s.ns) })
	s.Apply(s.t, "", strings.ReplaceAll(manifest, "NS", s.ns))
}

func TestPolicyReadsItsParametersFromAnObject(t *testing.T) {
	s := newSpace(t)
	s.create(kube.ConfigMap("limits", "most", "2"))
	s.policy("validatingadmissionpolicy", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NS}
spec:
  paramKind: {apiVersion: v1, kind: ConfigMap}
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}
  matchConditions:
  - {name: not-free, expression: object.metadata.name != 'free'}
  variables:
  - {name: most, expression: int(params.data.most)}
  validations:
  - expression: object.spec.replicas <= variables.most
    messageExpression: "'%d at most'.format([variables.most])"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: NS}
spec:
  policyName: NS
  paramRef: {name: limits, namespace: NS, parameterNotFoundAction: Deny}
  validationActions: [Deny]
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NS}}}
`)
	deploy := func(name, replicas string) []string {
		return []string{"create", "deployment", name, "--image=" + kube.Image, "--replicas=" + replicas, "--dry-run=server"}
	}
	s.untilForbidden("2 at most", deploy("web", "3")...)
	s.kubectl(deploy("web", "2")...)
	s.kubectl(deploy("free", "9")...)
	s.kubectl("patch", "configmap", "limits", "--patch", `{"data": {"most": "1"}}`)
	s.untilForbidden("1 at most", deploy("web", "2")...)
	s.kubectl("delete", "configmap", "limits")
	s.untilForbidden("no params found", deploy("web", "1")...)

	// Instead of a refusal, a warning.
	s.create(kube.ConfigMap("limits", "most", "1"))
	s.Kubectl(t, "patch", "validatingadmissionpolicybinding", s.ns, "--type=merge", "--patch", `{"spec": {"validationActions": ["Warn", "Audit"]}}`)
	heard := &warnings{}
	client := s.clientFor(s.REST, func(c *rest.Config) { c.WarningHandler = heard })
	s.WaitFor(t, "a warning instead of a refusal", func(ctx context.Context) (bool, error) {
		_, err := client.AppsV1().Deployments(s.ns).Create(ctx, kube.Deployment("web", 2), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return strings.Contains(heard.take(), "1 at most"), err
	})
}

func TestPolicyWithATypeErrorSaysSo(t *testing.T) {
	s := newSpace(t)
	s.policy("validatingadmissionpolicy", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NS}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}
  validations:
  - {expression: object.spec.replicaz > 1}
`)
	s.Kubectl(t, "wait", "validatingadmissionpolicy/"+s.ns, "--for=jsonpath={.status.typeChecking.expressionWarnings[0].warning}", "--timeout=60s")
	wantPart(t, "the warning", s.Kubectl(t, "get", "validatingadmissionpolicy", s.ns, "-o", "jsonpath={.status.typeChecking.expressionWarnings[0].warning}"), "undefined field 'replicaz'")
}

func TestPolicyChangesWhatIsWritten(t *testing.T) {
	s := newSpace(t)
	s.policy("mutatingadmissionpolicy", `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: NS}
spec:
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}
  matchConditions:
  - {name: not-free, expression: object.metadata.name != 'free'}
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: "Object{spec: Object.spec{replicas: object.spec.replicas + 1, minReadySeconds: 1}}"
  - patchType: JSONPatch
    jsonPatch:
      expression: "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.org/by'), value: 'policy'}]"
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: NS}
spec:
  policyName: NS
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NS}}}
`)
	made := func(name string) (string, error) {
		return s.kubectlErr("create", "deployment", name, "--image="+kube.Image, "--replicas=1", "--dry-run=server",
			"-o", `jsonpath={.spec.replicas} {.spec.minReadySeconds} {.metadata.labels.example\.org/by}`)
	}
	s.WaitFor(t, "the policy to act", func(context.Context) (bool, error) {
		out, err := made("web")
		return out == "2 1 policy", err
	})
	out, err := made("free")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "what the policy passes by", out, "1  ")
}
