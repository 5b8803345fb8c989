package lifecycle

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/cis"
	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// Secrets that a support bundle must not have.
const (
	plantedPassword = "hunter2-of-a-registry"
	plantedToken    = "abc123.0123456789abcdef"
)

// TestProfilesAndWhatHelpersAreTold: one server with both profiles, and what it
// tells about itself.
func TestProfilesAndWhatHelpersAreTold(t *testing.T) {
	n := harness.Start(t, harness.Options{
		Files: map[string]string{
			"/etc/knarr/config.yaml":     "profile: [cis, edge]\ntoken: " + plantedToken + "\n",
			"/etc/knarr/registries.yaml": "configs:\n  registry.example.org:\n    auth: {username: somebody, password: " + plantedPassword + "}\n",
		},
	})
	t.Run("the benchmark's items are met", func(t *testing.T) {
		if count := benchmark(t, n); count[cis.Profile] > 0 || count[cis.Pass] < 80 {
			t.Errorf("results: %v", count)
		}
	})
	t.Run("pods are restricted but in kube-system", func(t *testing.T) { restricted(t, n) })
	t.Run("who did what is recorded, and no contents", func(t *testing.T) { audited(t, n) })
	t.Run("the node speaks every two minutes", func(t *testing.T) { seldom(t, n) })
	t.Run("metrics and health are at the API server", func(t *testing.T) { observed(t, n) })
	t.Run("a support bundle has all but secrets", func(t *testing.T) { bundled(t, n) })
}

// benchmark counts the results of the self-check, and fails for each that does.
func benchmark(t *testing.T, n *harness.Node) map[cis.Status]int {
	t.Helper()
	out, err := n.ExecErr(t.Context(), n.Exe, "check", "--cis", "-o", "json")
	if err != nil {
		t.Error(err)
	}
	var all []cis.Result
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	count := map[cis.Status]int{}
	for _, r := range all {
		count[r.Status]++
		if r.Status == cis.Fail {
			t.Errorf("item %s (%s): %s", r.ID, r.Text, r.Reason)
		}
		if r.Status == cis.Profile {
			t.Logf("item %s (%s) is left to the profile: %s", r.ID, r.Text, r.Reason)
		}
	}
	return count
}

func restricted(t *testing.T, n *harness.Node) {
	pod := kube.Pod("plain", kube.HostNetwork)
	_, err := n.Client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
		t.Errorf("in default: %v", err)
	}
	// Its service account comes a moment after the namespace.
	if _, err := n.Client.CoreV1().Pods("kube-system").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("in kube-system: %v", err)
	}
}

func audited(t *testing.T, n *harness.Node) {
	n.Create(t, "default", kube.Secret("recorded", "key", "not-for-the-log"))
	text, err := os.ReadFile(n.Host.Path("/var/lib/knarr/server/logs/audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	if log := string(text); !strings.Contains(log, `"name":"recorded"`) || !strings.Contains(log, `"level":"Metadata"`) {
		t.Error("the request is not in the log")
	} else if strings.Contains(log, "bm90LWZvci10aGUtbG9n") || strings.Contains(log, "not-for-the-log") || strings.Contains(log, `"resource":"leases"`) {
		t.Error("the log tells too much")
	}
}

func seldom(t *testing.T, n *harness.Node) {
	// The lease itself comes with the second try, since the first finds no Node.
	var kubelet struct {
		Config struct {
			NodeLeaseDurationSeconds int32
		} `json:"kubeletconfig"`
	}
	if err := json.Unmarshal([]byte(n.Kubectl(t, "get", "--raw", "/api/v1/nodes/node/proxy/configz")), &kubelet); err != nil {
		t.Fatal(err)
	}
	if d := kubelet.Config.NodeLeaseDurationSeconds; d != 480 {
		t.Errorf("the lease lasts %d s", d)
	}
	var flags map[string]map[string]string
	if err := json.Unmarshal(n.Ask(t, http.MethodGet, cluster.FlagsPath), &flags); err != nil {
		t.Fatal(err)
	}
	if grace := flags["kube-controller-manager"]["node-monitor-grace-period"]; grace != "10m0s" {
		t.Errorf("node-monitor-grace-period is %q", grace)
	}
}

func observed(t *testing.T, n *harness.Node) {
	m := n.Kubectl(t, "get", "--raw", "/metrics")
	for _, want := range []string{
		"\nknarr_ready 1\n", "\nknarr_component_ready_seconds{component=\"kubelet\"} ", "\nknarr_certificate_expiry_timestamp_seconds{file=\"/var/lib/knarr/server/tls/apiserver.pem\"",
		"\napiserver_request_total{", "\nkubelet_node_name{", "\nscheduler_",
	} {
		if !strings.Contains(m, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	if out := n.Kubectl(t, "get", "--raw", "/knarr/readyz"); !strings.Contains(out, "[+]kubelet ready\n") {
		t.Errorf("readyz: %s", out)
	}
	if out := n.Kubectl(t, "get", "--raw", "/knarr/livez/containerd"); out != "[+]containerd ready\n" {
		t.Errorf("livez of containerd: %q", out)
	}
	if _, err := n.KubectlErr("get", "--raw", "/knarr/readyz", "--as=somebody"); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("somebody without the right: %v", err)
	}
}

func bundled(t *testing.T, n *harness.Node) {
	n.Exec(t, n.Exe, "support-bundle", "--to", "/var/lib/knarr/bundle.tar.gz")
	f, err := os.Open(n.Host.Path("/var/lib/knarr/bundle.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(text)
	}
	for name, want := range map[string]string{
		"status.json": `"kubelet"`, "flags.json": "service-cluster-ip-range", "goroutines.txt": "goroutine profile", "version.json": "v1.36.4", "configuration.txt": "profile: cis, edge",
		"config.yaml": "token: ", "registries.yaml": "registry.example.org", "certificates.json": "kube-apiserver", "files.txt": "/var/lib/knarr/server/tls/server-ca.key",
		"network/nft.txt": "table ", "network/proc-tcp.txt": "local_address", "cluster/nodes.txt": "Name: ", "cluster/metrics.txt": "knarr_ready 1",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has no %q: %.300s", name, want, files[name])
		}
	}
	secrets := []string{plantedPassword, strings.SplitN(plantedToken, ".", 2)[1], n.Token(t)}
	keys, err := filepath.Glob(n.Host.Path("/var/lib/knarr/server/tls/*"))
	if err != nil || len(keys) == 0 {
		t.Fatal(err)
	}
	for _, path := range keys {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, key, ok := strings.Cut(string(text), "PRIVATE KEY-----\n"); ok {
			secrets = append(secrets, strings.SplitN(key, "\n", 2)[0])
		}
	}
	for name, text := range files {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s has a secret: %.12s…", name, s)
			}
		}
	}
}
