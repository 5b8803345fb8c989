package e2e

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// It runs alone: while its server is away, whoever asks for all there is in the
// API is told that a part is missing.
func TestAPIServerInAPodIsPartOfTheAPI(t *testing.T) {
	s := newSpaceAlone(t)
	front, err := s.Client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	group := s.ns + ".example.org"
	ca := s.serveTLS("greeter", []string{"apiserver", "--group=" + group}, "ca.crt", front.Data["requestheader-client-ca-file"])
	service := "v1." + group
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "apiservice", service) })
	s.Apply(t, "", `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: `+service+`}
spec:
  group: `+group+`
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 10
  service: {namespace: `+s.ns+`, name: greeter}
  caBundle: `+ca+`
`)
	s.Kubectl(t, "wait", "apiservice/"+service, "--for=condition=Available", "--timeout=60s")

	// The user is who the front proxy says, whose certificate the pod has checked.
	greet := s.path("v1", "greetings")
	o, err := s.call("POST", greet, `{"kind": "Greeting", "apiVersion": "`+group+`/v1", "metadata": {"name": "hello"}}`)
	if err != nil {
		t.Fatal(err)
	}
	if from, _ := field(o, "spec.from").(string); from == "" || from == "system:anonymous" {
		t.Errorf("the greeting is from %q", from)
	}
	s.create(kube.Pod("client", kube.Grace(0)))
	s.running("client")
	if _, err := s.inErr("client", "testbox", "get", "--insecure", "--header", "X-Remote-User: admin", "https://greeter"+greet); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("who comes past the front proxy is believed: %v", err)
	}

	// It is used as any other kind is, with rights of the cluster's roles.
	s.WaitFor(t, "kubectl to know the kind", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "greetings."+group)
		return strings.Contains(out, "hello"), err
	})
	if _, err := s.kubectlErr("get", "greetings."+group, "--as=anna"); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a user without a role sees greetings: %v", err)
	}
	s.kubectl("create", "role", "greet", "--verb=list,get", "--resource=greetings."+group)
	s.kubectl("create", "rolebinding", "greet", "--role=greet", "--user=anna")
	s.WaitFor(t, "anna to see greetings", func(context.Context) (bool, error) {
		_, err := s.kubectlErr("get", "greetings."+group, "--as=anna")
		return err == nil, err
	})
	wantPart(t, "the deletion", s.kubectl("delete", "greetings."+group, "hello", "--wait=false"), "deleted")

	// A server that shows another authority's certificate is not believed.
	believe := func(authority, available string) {
		t.Helper()
		s.Kubectl(t, "patch", "apiservice", service, "--type=merge", "--patch", `{"spec": {"caBundle": "`+authority+`"}}`)
		s.Kubectl(t, "wait", "apiservice/"+service, "--for=condition=Available="+available, "--timeout=60s")
	}
	believe(base64.StdEncoding.EncodeToString(harness.ServingCertificate(t, "stranger").CA), "False")
	want(t, "why the server is not available", s.Kubectl(t, "get", "apiservice", service, "-o", "jsonpath={.status.conditions[0].reason}"), "FailedDiscoveryCheck")
	believe(ca, "True")

	// When its pod is gone, that is said, and nothing else suffers.
	s.kubectl("delete", "pod", "greeter")
	s.Kubectl(t, "wait", "apiservice/"+service, "--for=condition=Available=False", "--timeout=60s")
	if _, err := s.call("GET", greet, ""); err == nil || !strings.Contains(err.Error(), "503") && !strings.Contains(err.Error(), "unavailable") && !strings.Contains(err.Error(), "unable to handle") {
		t.Errorf("without its server: %v", err)
	}
	s.kubectl("get", "pods")
}
