package e2e

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const auditor = `
apiVersion: v1
kind: ServiceAccount
metadata:
  name: auditor
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: see-pods
rules:
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: auditor
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: see-pods
subjects:
- kind: ServiceAccount
  name: auditor
`

func TestServiceAccountMayDoWhatItsRolesSay(t *testing.T) {
	s := newSpace(t)
	s.apply(auditor)
	as := "--as=system:serviceaccount:" + s.ns + ":auditor"
	for question, answer := range map[string]string{
		"list pods": "yes", "delete pods": "no", "get secrets": "no", "list pods --namespace=default": "no",
	} {
		out, err := s.kubectlErr(append([]string{"auth", "can-i", as}, strings.Fields(question)...)...)
		want(t, question, strings.TrimSpace(out), answer)
		if (err == nil) != (answer == "yes") {
			t.Errorf("%s ended with %v", question, err)
		}
	}
}

// A controller-manager with one credential for all makes no such accounts.
func TestControllersActByAccountsOfTheirOwn(t *testing.T) {
	s := newSpace(t)
	accounts := s.Kubectl(t, "get", "serviceaccounts", "-n", "kube-system", "-o", "name")
	for _, name := range []string{"deployment-controller", "replicaset-controller", "node-controller", "generic-garbage-collector"} {
		wantPart(t, "the list of accounts", accounts, "serviceaccount/"+name+"\n")
	}
}

func TestCreatedTokenIsThatOfItsServiceAccount(t *testing.T) {
	s := newSpace(t)
	s.apply(auditor)
	bearer := rest.AnonymousClientConfig(s.REST)
	bearer.BearerToken = strings.TrimSpace(s.kubectl("create", "token", "auditor"))
	client, err := kubernetes.NewForConfig(bearer)
	if err != nil {
		t.Fatal(err)
	}
	who, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the bearer", who.Status.UserInfo.Username, "system:serviceaccount:"+s.ns+":auditor")
	if _, err := client.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := client.CoreV1().Secrets(s.ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets are not forbidden: %v", err)
	}
}

func TestStrangersMayNotUseTheAPI(t *testing.T) {
	s := newSpace(t)
	stranger := rest.AnonymousClientConfig(s.REST)
	client, err := kubernetes.NewForConfig(stranger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("a client without a credential lists pods: %v", err)
	}
	stranger.BearerToken = "made-up"
	if client, err = kubernetes.NewForConfig(stranger); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a client with a made-up token lists pods: %v", err)
	}
}

func TestPodTalksToTheAPIAsItsServiceAccount(t *testing.T) {
	s := newSpace(t)
	s.apply(auditor)
	s.create(
		kube.Pod("auditor", kube.Spec(func(p *corev1.PodSpec) { p.ServiceAccountName = "auditor" })),
		kube.Pod("mute", kube.Spec(func(p *corev1.PodSpec) { p.AutomountServiceAccountToken = new(false) })),
	)
	s.running("auditor")
	// The token's folder also tells which authority to believe.
	ask := func(path string) (string, error) {
		return s.inErr("auditor", "sh", "-c", `cd /var/run/secrets/kubernetes.io/serviceaccount
SSL_CERT_FILE=$PWD/ca.crt testbox get --header "Authorization: Bearer $(cat token)" https://kubernetes.default.svc`+path)
	}
	out, err := ask("/api/v1/namespaces/" + s.ns + "/pods/auditor")
	if err != nil {
		t.Fatal(err)
	}
	wantPart(t, "the pod", out, `"name":"auditor"`)
	_, err = ask("/api/v1/namespaces/" + s.ns + "/secrets")
	if err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("secrets are not forbidden: %v", err)
	}
	s.running("mute")
	if _, err := s.inErr("mute", "ls", "/var/run/secrets/kubernetes.io/serviceaccount"); err == nil {
		t.Error("a pod that wants no token has one")
	}
}

func TestTokenInAPodEndsWithThePod(t *testing.T) {
	s := newSpace(t)
	s.client()
	token := s.in("client", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	review := `
apiVersion: authentication.k8s.io/v1
kind: TokenReview
spec:
  token: ` + token
	s.Write(t, "/tmp/"+s.ns+"/review.yaml", review)
	valid := func() string {
		return s.Kubectl(t, "create", "-f", "/tmp/"+s.ns+"/review.yaml", "-o", "jsonpath={.status.authenticated}")
	}
	want(t, "whether the token is good", valid(), "true")
	s.kubectl("delete", "pod", "client")
	s.WaitFor(t, "the token to be void", func(context.Context) (bool, error) { return valid() != "true", nil })
}

func TestAdministratorSeesTheWholeAPI(t *testing.T) {
	s := newSpace(t)
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		want(t, path, s.Kubectl(t, "get", "--raw", path), "ok")
	}
	resources := s.Kubectl(t, "api-resources")
	for _, r := range []string{"deployments", "networkpolicies", "customresourcedefinitions", "apiservices", "leases"} {
		wantPart(t, "the list of resources", resources, r)
	}
	for _, line := range strings.Split(strings.TrimSpace(s.Kubectl(t, "get", "apiservices", "--no-headers")), "\n") {
		wantPart(t, "an APIService", line, "True")
	}
	wantPart(t, "an explanation", s.Kubectl(t, "explain", "pod.spec.containers.livenessProbe"), "Periodic probe of container liveness")
	wantPart(t, "the version", s.Kubectl(t, "version"), "Server Version: v1.36.4+knarr")
	wantPart(t, "the figures of the node", s.Kubectl(t, "get", "--raw", "/api/v1/nodes/"+s.node()+"/proxy/stats/summary"), `"nodeName"`)
	wantPart(t, "the description of the node", s.Kubectl(t, "describe", "node", s.node()), "KubeletReady")
}

func (s *space) node() string {
	s.t.Helper()
	return s.Kubectl(s.t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
}

func TestAPIReachesPodsAndServicesByProxy(t *testing.T) {
	s := newSpace(t)
	s.create(web("proxied")...)
	pod := s.pods("app=web", 2)[0].Name
	prefix := "/api/v1/namespaces/" + s.ns
	want(t, "the answer of the pod", s.Kubectl(t, "get", "--raw", prefix+"/pods/"+pod+":8080/proxy/"), "proxied\n")
	want(t, "the answer of the Service", s.Kubectl(t, "get", "--raw", prefix+"/services/web:http/proxy/"), "proxied\n")
}

func TestKindsOfUsersAreServedLikeBuiltInOnes(t *testing.T) {
	s := newSpace(t)
	group := s.ns + ".example.org"
	s.Apply(t, "", strings.ReplaceAll(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: ships.GROUP
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship, shortNames: [sh]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Oars, type: integer, jsonPath: .spec.oars}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [oars]
            properties:
              oars: {type: integer, minimum: 2}
              sail: {type: string, default: square}
`, "GROUP", group))
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "crd", "ships."+group, "--wait=false") })
	s.WaitFor(t, "the kind to be served", func(context.Context) (bool, error) {
		// It gives up on one that has no conditions yet.
		_, err := s.KubectlErr("wait", "crd/ships."+group, "--for=condition=established", "--timeout=10s")
		return err == nil, err
	})
	s.apply(`
apiVersion: ` + group + `/v1
kind: Ship
metadata:
  name: knarr
spec:
  oars: 8
`)
	wantPart(t, "the list", s.kubectl("get", "ships."+group), "knarr   8")
	want(t, "what was left to the default", s.get("ships."+group+"/knarr", ".spec.sail"), "square")
	_, err := s.kubectlErr("patch", "ships."+group, "knarr", "--type=merge", "--patch", `{"spec": {"oars": 1}}`)
	if err == nil || !strings.Contains(err.Error(), "greater than or equal to 2") {
		t.Errorf("a ship with one oar is accepted: %v", err)
	}
}

func TestQuotaAndDefaultsOfANamespaceHold(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: LimitRange
metadata:
  name: defaults
spec:
  limits:
  - type: Container
    default: {memory: 64Mi}
    defaultRequest: {memory: 32Mi}
---
apiVersion: v1
kind: ResourceQuota
metadata:
  name: few
spec:
  hard: {pods: "1"}
`)
	s.waitUntil("resourcequota/few", "jsonpath={.status.hard.pods}=1")
	s.client()
	want(t, "the default limit", s.get("pod/client", ".spec.containers[0].resources.limits.memory"), "64Mi")
	_, err := s.kubectlErr("run", "one-more", "--image=knarr.dev/test:1")
	if err == nil || !strings.Contains(err.Error(), "exceeded quota: few") {
		t.Errorf("the quota does not hold: %v", err)
	}
}

func TestPolicyOfTheClusterRefusesWhatItForbids(t *testing.T) {
	s := newSpace(t)
	s.Apply(t, "", strings.ReplaceAll(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: NS
spec:
  matchConstraints:
    resourceRules:
    - apiGroups: [""]
      apiVersions: [v1]
      operations: [CREATE]
      resources: [configmaps]
  validations:
  - expression: object.metadata.name != 'forbidden'
    message: that name is taken by the wind
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: NS
spec:
  policyName: NS
  validationActions: [Deny]
  matchResources:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: NS}
`, "NS", s.ns))
	t.Cleanup(func() {
		_, _ = s.KubectlErr("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", s.ns)
	})
	s.WaitFor(t, "the policy to refuse", func(context.Context) (bool, error) {
		_, err := s.kubectlErr("create", "configmap", "forbidden", "--dry-run=server")
		return fails(err, "taken by the wind")
	})
	s.kubectl("create", "configmap", "allowed")
}

func TestPodSecurityLevelOfANamespaceHolds(t *testing.T) {
	s := newSpace(t)
	s.Kubectl(t, "label", "namespace", s.ns, "pod-security.kubernetes.io/enforce=baseline")
	s.client()
	_, err := s.kubectlErr("run", "bold", "--image=knarr.dev/test:1", "--overrides", `{"spec": {"hostNetwork": true}}`)
	if err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
		t.Errorf("a pod on the host's network is accepted: %v", err)
	}
}
