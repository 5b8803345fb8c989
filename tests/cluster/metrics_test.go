package cluster

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/tests/harness"
)

// metricNames are those in PromQL and in prose: what is not a metric of one of these
// prefixes is a function, a label or a word.
var metricNames = regexp.MustCompile(`\b(knarr|apiserver|process|go|etcd|kubelet|workqueue|rest_client)_[a-z0-9_]+\b`)

// knownMetrics: each metric that an alert rule, the dashboard or the docs name is told
// by the server or by the agent.
func knownMetrics(t *testing.T, server *harness.Node, agent string) {
	told := server.Kubectl(t, "get", "--raw", "/metrics")
	// A kubelet that has just joined has no certificate to serve with before its
	// request is signed, which can be after its node is Ready.
	server.WaitFor(t, "the agent's metrics", func(context.Context) (bool, error) {
		of, err := server.KubectlErr("get", "--raw", "/api/v1/nodes/"+agent+"/proxy/metrics")
		if err == nil {
			told += of
		}
		return err == nil, err
	})
	known := map[string]bool{}
	for line := range strings.SplitSeq(told, "\n") {
		if rest, is := strings.CutPrefix(line, "# TYPE "); is {
			name, kind, _ := strings.Cut(rest, " ")
			known[name] = true
			if kind == "histogram" {
				known[name+"_bucket"] = true
			}
		}
	}
	for path, exprs := range map[string][]string{
		"contrib/prometheus/knarr.rules.yaml": exprsOf(t, "contrib/prometheus/knarr.rules.yaml"),
		"contrib/grafana/knarr.json":          exprsOf(t, "contrib/grafana/knarr.json"),
		"docs/observability.md":               knarrsOwn(t, "docs/observability.md"),
		"docs/store.md":                       knarrsOwn(t, "docs/store.md"),
	} {
		if len(exprs) == 0 {
			t.Errorf("%s names no metric", path)
		}
		for _, e := range exprs {
			for _, name := range metricNames.FindAllString(e, -1) {
				if !known[name] {
					t.Errorf("%s speaks of %s, which nobody tells", path, name)
				}
			}
		}
	}
}

// exprsOf are all expressions in a file of rules or of a dashboard.
func exprsOf(t *testing.T, path string) []string {
	t.Helper()
	var file any
	if err := yaml.Unmarshal(read(t, path), &file); err != nil {
		t.Fatal(err)
	}
	var found []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, one := range v {
				if text, is := one.(string); is && k == "expr" {
					found = append(found, text)
				}
				walk(one)
			}
		case []any:
			for _, one := range v {
				walk(one)
			}
		}
	}
	walk(file)
	return found
}

func knarrsOwn(t *testing.T, path string) []string {
	t.Helper()
	return regexp.MustCompile("`knarr_[a-z_]+").FindAllString(string(read(t, path)), -1)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
