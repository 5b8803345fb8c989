package helm

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// read makes an object of a manifest.
func read[T any](t *testing.T, manifest string) *T {
	t.Helper()
	o, into := &unstructured.Unstructured{}, new(T)
	if err := yaml.Unmarshal([]byte(manifest), &o.Object); err != nil {
		t.Fatal(err)
	}
	if err := decode(o, into); err != nil {
		t.Fatal(err)
	}
	return into
}

func TestValuesAreMerged(t *testing.T) {
	secret := func(_ context.Context, name string) (map[string][]byte, error) {
		if name != "more" {
			return nil, errors.New("no Secret " + name)
		}
		return map[string][]byte{"a": []byte("from: secret-a\nonly: {a: 1}\n"), "b": []byte("from: secret-b\n")}, nil
	}
	for name, c := range map[string]struct{ chart, config, want, err string }{
		"none":                    {"spec: {chart: x}", "", `{}`, ""},
		"content":                 {"spec: {valuesContent: \"a: {b: 1, c: 2}\"}", "", `{"a":{"b":1,"c":2}}`, ""},
		"values beat content":     {"spec: {valuesContent: \"a: {b: 1, c: 2}\", values: {a: {b: 3}}}", "", `{"a":{"b":3,"c":2}}`, ""},
		"secrets beat both":       {"spec: {values: {from: values}, valuesSecrets: [{name: more, keys: [a]}]}", "", `{"from":"secret-a","only":{"a":1}}`, ""},
		"all keys of a secret":    {"spec: {valuesSecrets: [{name: more}]}", "", `{"from":"secret-b","only":{"a":1}}`, ""},
		"the config beats all":    {"spec: {valuesSecrets: [{name: more}]}", "spec: {valuesContent: \"from: config\"}", `{"from":"config","only":{"a":1}}`, ""},
		"but for set":             {"spec: {set: {from: set}}", "spec: {values: {from: config}}", `{"from":"set"}`, ""},
		"set knows types":         {"spec: {set: {a.n: 3, a.t: \"true\", a.s: \"1.5\"}}", "", `{"a":{"n":3,"s":"1.5","t":true}}`, ""},
		"commas of set":           {"spec: {set: {list: \"a,b\\\\,c\"}}", "", `{"list":"a,b,c"}`, ""},
		"set reaches into lists":  {"spec: {set: {\"l[0].x\": 1}}", "", `{"l":[{"x":1}]}`, ""},
		"a value is taken away":   {"spec: {valuesContent: \"a: 1\"}", "spec: {valuesContent: \"a: null\"}", `{"a":null}`, ""},
		"content that is no YAML": {"spec: {valuesContent: \"a: [\"}", "", "", "values of the HelmChart: valuesContent is no YAML"},
		"content that is a list":  {"spec: {chart: x}", "spec: {valuesContent: \"[a]\"}", "", "values of the HelmChartConfig: valuesContent is no YAML"},
		"a secret that is not":    {"spec: {valuesSecrets: [{name: none}]}", "", "", "no Secret none"},
		"a key that is not":       {"spec: {valuesSecrets: [{name: more, keys: [c]}]}", "", "", "secret more has no key c"},
	} {
		t.Run(name, func(t *testing.T) {
			var config *helmChartConfig
			if c.config != "" {
				config = read[helmChartConfig](t, c.config)
			}
			v, err := values(t.Context(), read[helmChart](t, c.chart), config, secret)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error is %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("values are %s, want %s", got, c.want)
			}
		})
	}
}

func TestWhatIsDoneFollowsTheLastRevision(t *testing.T) {
	for name, c := range map[string]struct {
		status common.Status
		hash   string
		before bool
		policy string
		want   plan
	}{
		"nothing is there":              {"", "", false, "", install},
		"uninstalled, history kept":     {common.StatusUninstalled, "new", true, "", install},
		"as wanted":                     {common.StatusDeployed, "new", true, "", nothing},
		"changed":                       {common.StatusDeployed, "old", true, "", upgrade},
		"made by somebody else":         {common.StatusDeployed, "", true, "abort", upgrade},
		"the install failed":            {common.StatusFailed, "new", false, "", reinstall},
		"an upgrade failed":             {common.StatusFailed, "new", true, "", upgrade},
		"an upgrade failed, reinstall":  {common.StatusFailed, "new", true, "reinstall", reinstall},
		"the install failed, retry":     {common.StatusFailed, "new", false, "retry", upgrade},
		"it failed, abort":              {common.StatusFailed, "new", true, "abort", nothing},
		"it failed, abort, but changed": {common.StatusFailed, "old", true, "abort", upgrade},
		"killed in the install":         {common.StatusPendingInstall, "new", false, "", reinstall},
		"killed in an upgrade":          {common.StatusPendingUpgrade, "new", true, "", upgrade},
		"killed while it uninstalled":   {common.StatusUninstalling, "new", true, "", reinstall},
	} {
		t.Run(name, func(t *testing.T) {
			var last *releasev1.Release
			if c.status != "" {
				last = &releasev1.Release{Info: &releasev1.Info{Status: c.status}, Labels: map[string]string{hashLabel: c.hash}}
			}
			if got := decide(last, c.before, "new", c.policy); got != c.want {
				t.Errorf("plan %d, want %d", got, c.want)
			}
		})
	}
}

func TestHashFollowsWhatAReleaseIsMadeFrom(t *testing.T) {
	base := read[helmChart](t, "spec: {chart: a, version: \"1\"}").Spec
	sum := func(s chartSpec, v map[string]any) string {
		h, err := hash(s, v)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	want := sum(base, map[string]any{"a": 1, "b": 2})
	if got := sum(base, map[string]any{"b": 2, "a": 1}); got != want {
		t.Error("the order of values counts")
	}
	slower := base
	slower.Timeout = read[helmChart](t, "spec: {timeout: 1h}").Spec.Timeout
	slower.FailurePolicy = "abort"
	if got := sum(slower, map[string]any{"a": 1, "b": 2}); got != want {
		t.Error("a timeout or policy has a release upgraded")
	}
	next := base
	next.Version = "2"
	if sum(next, map[string]any{"a": 1, "b": 2}) == want || sum(base, map[string]any{"a": 2}) == want {
		t.Error("another version or other values count for nothing")
	}
}

func TestQueueDoesEachNameOnceAtATime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began, end := make(chan string), make(chan struct{})
	q := newQueue(2, func(_ context.Context, n key) time.Duration {
		began <- n.Name
		<-end
		return 0
	})
	done := make(chan struct{})
	go func() { q.run(ctx); close(done) }()
	for _, n := range []string{"a", "a", "b", "c"} {
		q.add(key{k3sGroup, types.NamespacedName{Name: n}}, 0)
	}
	first := map[string]bool{<-began: true, <-began: true}
	if len(first) != 2 {
		t.Errorf("at once: %v", first)
	}
	for n := range first { // while it runs
		q.add(key{k3sGroup, types.NamespacedName{Name: n}}, 0)
	}
	select {
	case n := <-began:
		t.Errorf("%s began although two were running", n)
	default:
	}
	count := map[string]int{}
	for range 3 {
		end <- struct{}{}
		count[<-began]++
	}
	for range 2 {
		end <- struct{}{}
	}
	if len(count) != 3 {
		t.Errorf("after them: %v, want each name once", count)
	}
	cancel()
	<-done
}
