package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// clientFor is a client that is not the administrator's, or not quite.
func (s *space) clientFor(from *rest.Config, edit func(*rest.Config)) kubernetes.Interface {
	s.t.Helper()
	c := rest.CopyConfig(from)
	edit(c)
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// bearer is a client with a token and nothing else.
func (s *space) bearer(token string) *rest.Config {
	c := rest.AnonymousClientConfig(s.REST)
	c.BearerToken = token
	return c
}

// warnings are what the API server says beside its answers.
type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.said, "\n")
	w.said = nil
	return text
}

func (s *space) label(labels ...string) {
	s.t.Helper()
	s.Kubectl(s.t, append([]string{"label", "--overwrite", "namespace", s.ns}, labels...)...)
}

func TestPodSecurityWarnsBeforeItEnforces(t *testing.T) {
	s := newSpace(t)
	heard := &warnings{}
	client := s.clientFor(s.REST, func(c *rest.Config) { c.WarningHandler = heard })
	create := func(p *corev1.Pod, dryRun ...string) error {
		_, err := client.CoreV1().Pods(s.ns).Create(t.Context(), p, metav1.CreateOptions{DryRun: dryRun})
		return err
	}
	s.label("pod-security.kubernetes.io/warn=restricted")
	// Admission learns of labels, and of pods, a moment after they are written.
	s.WaitFor(t, "the warning", func(context.Context) (bool, error) {
		err := create(kube.Pod("loose"), metav1.DryRunAll)
		return strings.Contains(heard.take(), `would violate PodSecurity "restricted:latest"`), err
	})
	if err := create(kube.Pod("loose")); err != nil {
		t.Fatal(err)
	}

	// Who would enforce it is told what is there already.
	patch := []byte(`{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}`)
	enforce := func(dryRun ...string) error {
		_, err := client.CoreV1().Namespaces().Patch(t.Context(), s.ns, "application/merge-patch+json", patch, metav1.PatchOptions{DryRun: dryRun})
		return err
	}
	s.WaitFor(t, "the warning of the new level", func(context.Context) (bool, error) {
		err := enforce(metav1.DryRunAll)
		return strings.Contains(heard.take(), "existing pods in namespace"), err
	})
	if err := enforce(); err != nil {
		t.Fatal(err)
	}
	s.WaitFor(t, "a pod that violates the level to be forbidden", func(context.Context) (bool, error) {
		err := create(kube.Pod("late"), metav1.DryRunAll)
		return apierrors.IsForbidden(err), nil
	})
	s.create(kube.Deployment("loose", 1))
	s.waitUntil("deployment/loose", "condition=ReplicaFailure")
	wantPart(t, "why no pod is made", s.get("deployment/loose", `.status.conditions[?(@.type=="ReplicaFailure")].message`), "violates PodSecurity")

	s.create(kube.Pod("strict", securePod(corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(1000)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}), secureBox(corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	})))
	s.running("strict")
	s.label("pod-security.kubernetes.io/enforce=privileged")
	s.WaitFor(t, "the pod to be allowed", func(context.Context) (bool, error) {
		err := create(kube.Pod("late"), metav1.DryRunAll)
		return err == nil, err
	})
}

func TestUserActsForThoseItMayImpersonate(t *testing.T) {
	s := newSpace(t)
	s.create(
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "deputy"}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "see-pods"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "crew"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "see-pods"},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "crew"}}},
	)
	s.Create(t, "",
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"users"}, Verbs: []string{"impersonate"}, ResourceNames: []string{"anna"}},
			{APIGroups: []string{""}, Resources: []string{"groups"}, Verbs: []string{"impersonate"}, ResourceNames: []string{"crew"}},
			{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"userextras/reason"}, Verbs: []string{"impersonate"}},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: s.ns},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: s.ns, Name: "deputy"}}},
	)
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "clusterrole,clusterrolebinding", s.ns) })
	deputy := s.bearer(strings.TrimSpace(s.kubectl("create", "token", "deputy")))
	list := func(who rest.ImpersonationConfig) error {
		client := s.clientFor(deputy, func(c *rest.Config) { c.Impersonate = who })
		_, err := client.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{})
		return err
	}
	anna := rest.ImpersonationConfig{UserName: "anna", Groups: []string{"crew"}, Extra: map[string][]string{"reason": {"drill"}}}
	// Authorizers learn of roles a moment after those are written.
	s.WaitFor(t, "anna of the crew to see pods", func(context.Context) (bool, error) {
		err := list(anna)
		return err == nil, err
	})
	for what, who := range map[string]rest.ImpersonationConfig{
		"the deputy itself": {}, "anna alone": {UserName: "anna"}, "another user": {UserName: "ben", Groups: []string{"crew"}},
		"the masters": {UserName: "anna", Groups: []string{"system:masters"}},
	} {
		if err := list(who); !apierrors.IsForbidden(err) {
			t.Errorf("as %s: not forbidden: %v", what, err)
		}
	}
	me, err := s.clientFor(deputy, func(c *rest.Config) { c.Impersonate = anna }).AuthenticationV1().SelfSubjectReviews().
		Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	who := me.Status.UserInfo
	if who.Username != "anna" || !slices.Contains(who.Groups, "crew") || len(who.Extra["reason"]) != 1 {
		t.Errorf("the impersonated user is %+v", who)
	}
}

func TestNobodyGivesMoreRightsThanHeHas(t *testing.T) {
	s := newSpace(t)
	s.create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "anna"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "anna"}}})
	give := func(verb, resource string) (string, error) {
		return s.kubectlErr("create", "role", "given-"+resource, "--verb="+verb, "--resource="+resource, "--as=anna", "--dry-run=server")
	}
	s.WaitFor(t, "anna to give a right that she has", func(context.Context) (bool, error) {
		_, err := give("list", "pods")
		return err == nil, err
	})
	if _, err := give("create", "endpointslices"); err == nil || !strings.Contains(err.Error(), "attempting to grant RBAC permissions not currently held") {
		t.Errorf("anna gives a right that she has not: %v", err)
	}
}

// A role that gathers others is how add-ons give users their rights.
func TestRolesOfALabelAreGathered(t *testing.T) {
	s := newSpace(t)
	rule := func(resource string) []rbacv1.PolicyRule {
		return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{resource}, Verbs: []string{"get"}}}
	}
	part := func(name, resource string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-" + name, Labels: map[string]string{"gather": s.ns}}, Rules: rule(resource)}
	}
	s.Create(t, "", part("a", "pods"), part("b", "secrets"), &rbacv1.ClusterRole{
		ObjectMeta:      metav1.ObjectMeta{Name: s.ns},
		AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"gather": s.ns}}}},
	})
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "clusterrole", s.ns, s.ns+"-a", s.ns+"-b", "--ignore-not-found") })
	gathered := func(resources string) {
		t.Helper()
		s.WaitFor(t, "the role to give "+resources, func(context.Context) (bool, error) {
			out, err := s.KubectlErr("get", "clusterrole", s.ns, "-o", "jsonpath={.rules[*].resources[*]}")
			return out == resources, err
		})
	}
	gathered("pods secrets")
	s.Kubectl(t, "delete", "clusterrole", s.ns+"-a")
	gathered("secrets")
}

func TestUserIsToldAllThatHeMayDo(t *testing.T) {
	s := newSpace(t)
	s.apply(auditor)
	as := "--as=system:serviceaccount:" + s.ns + ":auditor"
	var list string
	s.WaitFor(t, "the role to be known", func(context.Context) (bool, error) {
		list = s.kubectl("auth", "can-i", "--list", as)
		return strings.Contains(list, "pods "), nil
	})
	for line := range strings.Lines(list) {
		if strings.HasPrefix(line, "pods ") {
			want(t, "what may be done with pods", strings.Join(strings.Fields(line), " "), "pods [] [] [get list watch]")
		}
		if strings.HasPrefix(line, "secrets ") {
			t.Errorf("secrets are among it: %s", line)
		}
	}
	wantPart(t, "what everybody may do", list, "selfsubjectaccessreviews.authorization.k8s.io")
	wantPart(t, "who the user is", s.kubectl("auth", "whoami", as), "system:serviceaccounts:"+s.ns)
	wantPart(t, "all that the administrator may do", s.kubectl("auth", "can-i", "--list"), "*.*")
}

// A person's certificate comes from the cluster, once somebody approves.
func TestUserCertificateIsSignedOnceItIsApproved(t *testing.T) {
	s := newSpace(t)
	key, request := certificateRequest(t, pkix.Name{CommonName: "anna", Organization: []string{s.ns}})
	csrs := s.Client.CertificatesV1().CertificateSigningRequests()
	name := s.ns
	_, err := csrs.Create(t.Context(), &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: request, SignerName: certificatesv1.KubeAPIServerClientSignerName, ExpirationSeconds: new(int32(3600)),
		Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "csr", name) })
	s.Kubectl(t, "certificate", "approve", name)
	s.Kubectl(t, "wait", "csr/"+name, "--for=jsonpath={.status.certificate}", "--timeout=60s")
	csr, err := csrs.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	anna := s.clientFor(rest.AnonymousClientConfig(s.REST), func(c *rest.Config) {
		c.CertData, c.KeyData = csr.Status.Certificate, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	})
	me, err := anna.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if who := me.Status.UserInfo; who.Username != "anna" || !slices.Contains(who.Groups, s.ns) {
		t.Errorf("the certificate's user is %+v", who)
	}
}

func certificateRequest(t *testing.T, who pkix.Name) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: who}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
