package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"

	"github.com/knarr-dev/knarr/tests/harness"
)

// The chart is the one in metrics-server's Go module, as its authors publish it. It
// goes to the cluster's own registry by Helm's command line, and is installed from
// there by a HelmChart of our group, with the test image in place of its own.
func TestARealChartIsInstalledFromTheClustersRegistry(t *testing.T) {
	s := newSpace(t)
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/metrics-server").Output()
	if err != nil {
		t.Fatal(err)
	}
	chart, err := loader.LoadDir(filepath.Join(strings.TrimSpace(string(module)), "charts", "metrics-server"))
	if err != nil {
		t.Fatal(err)
	}
	packed, err := chartutil.Save(chart, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	archive := "/tmp/" + s.ns + "/" + filepath.Base(packed)
	harness.CopyFile(t, packed, s.Host.Path(archive), 0o644)
	s.knarr("helm", "push", archive, "oci://localhost:5000/"+s.ns, "--plain-http")
	s.Exec(t, "rm", "-r", filepath.Dir(archive))
	wantPart(t, "the registry's list", s.knarr("image", "list", "--registry"), s.ns+"/metrics-server")

	r := s.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "metrics:1", func(i *ocispec.Image) {
		i.Config.Entrypoint, i.Config.Cmd = []string{"sh", "-c", "echo given: $*; exec testbox sleep", "sh"}, nil
	})
	values := `
  valuesContent: |
    apiService: {create: false}
    fullnameOverride: real
    image: {repository: ` + r.Image("metrics") + `, tag: "1"}
    livenessProbe: null
    readinessProbe: null
`
	helmChart := func(more string) string {
		return `
apiVersion: helm.knarr.dev/v1
kind: HelmChart
metadata: {name: ` + s.ns + `}
spec:
  chart: oci://localhost:5000/` + s.ns + `/metrics-server
  version: ` + chart.Metadata.Version + `
  plainHTTP: true` + values + more
	}
	s.apply(helmChart(""))
	s.waitUntil("helmcharts.helm.knarr.dev/"+s.ns, "condition=Deployed")
	s.kubectl("rollout", "status", "deployment/real", "--timeout=60s")
	wantPart(t, "what its program is given", s.kubectl("logs", "deployment/real"), "given: --secure-port=10250 --cert-dir=/tmp")
	wantPart(t, "helm's list", s.knarr("helm", "list", "-n", s.ns), "metrics-server-"+chart.Metadata.Version)

	s.apply("apiVersion: helm.knarr.dev/v1\nkind: HelmChartConfig\nmetadata: {name: " + s.ns + "}\nspec: {valuesContent: 'replicas: 2'}\n")
	s.pods("app.kubernetes.io/name=metrics-server", 2)

	s.kubectl("delete", "helmcharts.helm.knarr.dev", s.ns, "--timeout=60s")
	want(t, "what is left of it", s.Kubectl(t, "get", "deployment,service,clusterrole", "-n", s.ns, "-l", "app.kubernetes.io/instance="+s.ns, "-o", "name"), "")
}
