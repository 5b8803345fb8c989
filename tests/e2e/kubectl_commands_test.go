package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestUserRunsExposesAndLabelsByCommands(t *testing.T) {
	s := newSpace(t)
	s.kubectl("run", "once", "--image="+kube.Image, "--restart=Never", "--", "echo", "hello")
	want(t, "what the pod wrote", s.ended("once", corev1.PodSucceeded), "hello\n")
	s.kubectl("create", "deployment", "web", "--image="+kube.Image, "--", "testbox", "serve", "--port=8080", "--body=hello")
	s.kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080", "--name=front")
	s.client()
	s.pods("app=web", 1)
	want(t, "the answer of what was exposed", s.fromPod("http://front"), "hello")

	s.kubectl("label", "pod", "once", "keep=yes")
	want(t, "what the label selects", s.kubectl("get", "pods", "-l", "keep=yes", "-o", "name"), "pod/once\n")
	s.kubectl("label", "pod", "once", "keep-")
	want(t, "what the label selects after it is taken off", s.kubectl("get", "pods", "-l", "keep=yes", "-o", "name"), "")
	s.kubectl("patch", "deployment", "web", "--patch", `{"metadata": {"annotations": {"note": "patched"}}}`)
	s.kubectl("annotate", "deployment", "web", "more=yes")
	want(t, "the annotations", s.get("deployment/web", ".metadata.annotations.note")+s.get("deployment/web", ".metadata.annotations.more"), "patchedyes")
	s.kubectl("scale", "deployment", "web", "--replicas=2")
	s.pods("app=web", 2)
	s.event("web", "ScalingReplicaSet", "from 1 to 2")
	described := s.kubectl("describe", "deployment", "web")
	wantPart(t, "the description", described, "2 desired | 2 updated | 2 total | 2 available")
	wantPart(t, "the description", described, "Scaled up replica set")

	s.kubectl("set", "env", "deployment/web", "--dry-run=server", "A=B")
	want(t, "the environment after a dry run", s.get("deployment/web", ".spec.template.spec.containers[0].env"), "")
	s.kubectl("delete", "pod", "once")
	manifest := s.kubectl("create", "configmap", "note", "--from-literal=a=1", "--dry-run=client", "-o", "yaml")
	s.kubectl("create", "-f", s.file("note.yaml", manifest))
	s.kubectl("replace", "-f", s.file("note.yaml", strings.Replace(manifest, "a: \"1\"", "b: \"2\"", 1)))
	want(t, "the data after it was replaced", s.get("configmap/note", ".data"), `{"b":"2"}`)
}

func TestUserAsksWhatTheClusterIs(t *testing.T) {
	s := newSpace(t)
	wantPart(t, "the versions of the API", s.Kubectl(t, "api-versions"), "\nv1\n")
	info := s.Kubectl(t, "cluster-info")
	wantPart(t, "the information", info, "Kubernetes control plane")
	wantPart(t, "the information", info, "is running at")
	version := s.Kubectl(t, "version", "-o", "json")
	for _, part := range []string{`"major": "1"`, `"minor": "36"`, `"gitVersion": "v1.36.4+knarr1"`, `"serverVersion"`} {
		wantPart(t, "the version", version, part)
	}
}

func TestProxyOfKubectlServesTheAPIToPrograms(t *testing.T) {
	s := newSpace(t)
	_, addr, ok := strings.Cut(s.start("proxy", "--port=0").line(), "127.0.0.1:")
	if !ok {
		t.Fatal("the proxy does not tell where it serves")
	}
	wantPart(t, "the API by a port", s.fromNode("http://127.0.0.1:"+addr+"/api/"), `"APIVersions"`)

	socket := "/tmp/" + s.ns + "/proxy.sock"
	s.file("any", "") // makes the folder
	s.start("proxy", "--unix-socket="+socket).line()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Host.Path(socket))
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/api/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	wantPart(t, "the API by a socket", string(body), `"APIVersions"`)
}
