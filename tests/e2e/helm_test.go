package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	repo "helm.sh/helm/v4/pkg/repo/v1"
)

const noteTemplate = `
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-note}
data: {text: {{ .Values.text | quote }}, more: {{ .Values.more | quote }}, kube: {{ .Capabilities.KubeVersion.Version | quote }}}
`

// packChart has Helm pack a chart that makes a ConfigMap, and returns the archive.
func packChart(t *testing.T, dir, version string) string {
	t.Helper()
	path, err := chartutil.Save(&chartv2.Chart{
		Metadata:  &chartv2.Metadata{APIVersion: chartv2.APIVersionV2, Name: "note", Version: version, KubeVersion: ">= 1.30.0-0"},
		Templates: []*common.File{{Name: "templates/note.yaml", Data: []byte(noteTemplate)}},
		// The packager takes the values from the file.
		Raw: []*common.File{{Name: chartutil.ValuesfileName, Data: []byte("text: default\nmore: default " + version + "\n")}},
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// wantData waits until a ConfigMap has a value.
func (s *space) wantData(namespace, name, key, value string) {
	s.t.Helper()
	s.WaitFor(s.t, fmt.Sprintf("%s of ConfigMap %s to be %q", key, name, value), func(context.Context) (bool, error) {
		out, err := s.KubectlErr("get", "configmap", name, "-n", namespace, "-o", "jsonpath={.data."+key+"}")
		if err == nil && out != value {
			err = fmt.Errorf("it is %q", out)
		}
		return err == nil, err
	})
}

func TestHelmChartIsInstalledChangedAndUninstalled(t *testing.T) {
	s := newSpace(t)
	archive, err := os.ReadFile(packChart(t, t.TempDir(), "1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	target := s.ns + "-target"
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "namespace", target, "--wait=false", "--ignore-not-found") })
	s.kubectl("create", "secret", "generic", "values", "--from-literal=values.yaml=more: from the secret")
	chart := func(more string) string {
		return `
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: mine}
spec:
  targetNamespace: ` + target + `
  createNamespace: true
  jobImage: this/is/not/used
  valuesSecrets: [{name: values, keys: [values.yaml]}]
  chartContent: ` + base64.StdEncoding.EncodeToString(archive) + more
	}
	s.apply(chart("\n  valuesContent: 'text: from the chart'\n"))
	s.wantData(target, "mine-note", "text", "from the chart")
	want(t, "what the secret says", s.Kubectl(t, "get", "configmap", "mine-note", "-n", target, "-o", "jsonpath={.data.more}"), "from the secret")
	s.waitUntil("helmchart/mine", "condition=Deployed")
	s.event("mine", "Deployed", "note-1.0.0 installed")
	wantPart(t, "helm's list", s.Exec(t, s.Exe, "helm", "list", "-n", target), "note-1.0.0")

	// It is overridden without being touched.
	s.apply("apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: mine}\nspec: {valuesContent: 'text: from the config'}\n")
	s.wantData(target, "mine-note", "text", "from the config")
	s.waitUntil("helmchart/mine", "jsonpath={.status.revision}=2")
	s.kubectl("delete", "helmchartconfig", "mine")
	s.wantData(target, "mine-note", "text", "from the chart")

	// What it made comes back when it is looked at.
	s.Kubectl(t, "delete", "configmap", "mine-note", "-n", target)
	s.apply(chart("\n  valuesContent: 'text: from the chart'\n  timeout: 1m\n"))
	s.wantData(target, "mine-note", "text", "from the chart")

	// A mistake is told, and the release stays.
	s.apply(chart("\n  valuesContent: '[no, keys]'\n"))
	s.waitUntil("helmchart/mine", "condition=Failed")
	s.event("mine", "Failed", "valuesContent is no YAML of keys and values")
	s.WaitFor(t, "it in the status", func(ctx context.Context) (bool, error) {
		out, err := s.ExecErr(ctx, s.Exe, "status")
		return strings.Contains(out, s.ns+"/mine"), err
	})
	s.wantData(target, "mine-note", "text", "from the chart")

	s.kubectl("delete", "helmchart", "mine", "--timeout=60s")
	want(t, "what is left of the release", s.Kubectl(t, "get", "configmap", "mine-note", "-n", target, "--ignore-not-found", "-o", "name"), "")
	want(t, "what helm knows", s.Exec(t, s.Exe, "helm", "list", "-q", "-n", target), "")
}

func TestHelmChartComesFromARepository(t *testing.T) {
	s := newSpace(t)
	dir := t.TempDir()
	packChart(t, dir, "1.0.0")
	packChart(t, dir, "1.1.0")
	l, err := s.Host.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	index, err := repo.IndexDirectory(dir, url)
	if err == nil {
		err = index.WriteFile(filepath.Join(dir, "index.yaml"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "anna" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
	})}
	ended := make(chan struct{})
	go func() {
		_ = srv.Serve(l) // closed, as asked
		close(ended)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})

	// By a file in the folder of manifests, as k3s' users do it.
	file := s.manifestFolder() + "note.yaml"
	chart := func(version string) string {
		return `
apiVersion: v1
kind: Secret
type: kubernetes.io/basic-auth
metadata: {name: login, namespace: ` + s.ns + `}
stringData: {username: anna, password: secret}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: theirs, namespace: ` + s.ns + `}
spec:
  repo: ` + url + `
  chart: note
  version: ` + version + `
  authSecret: {name: login}
  set: {text: "a, b"}
`
	}
	s.Write(t, file, chart("1.0.0"))
	s.wantData(s.ns, "theirs-note", "text", "a, b")
	want(t, "what the first version says", s.get("configmap/theirs-note", ".data.more"), "default 1.0.0")
	s.Write(t, file, chart("~1.1"))
	s.wantData(s.ns, "theirs-note", "more", "default 1.1.0")

	// `knarr helm` knows the repository's charts too.
	out := s.Exec(t, s.Exe, "helm", "show", "chart", "note", "--repo", url, "--username=anna", "--password=secret")
	wantPart(t, "the newest chart", out, "version: 1.1.0")

	s.removeFile(file)
	s.WaitFor(t, "the release to go with the file", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "configmap/theirs-note", "--ignore-not-found", "-o", "name")
		return out == "", err
	})
}
