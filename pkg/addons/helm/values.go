package helm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// readSecret returns a Secret's data.
type readSecret func(ctx context.Context, name string) (map[string][]byte, error)

// values puts together what a chart is installed with. What comes later wins:
// the HelmChart's valuesContent, values and valuesSecrets, the same of its
// HelmChartConfig, which may be nil, and the HelmChart's set.
func values(ctx context.Context, c *helmChart, config *helmChartConfig, secret readSecret) (map[string]any, error) {
	all := map[string]any{}
	layers := []struct {
		kind string
		overrides
	}{{chartKind, c.Spec.overrides}}
	if config != nil {
		layers = append(layers, struct {
			kind string
			overrides
		}{configKind, config.Spec})
	}
	for _, l := range layers {
		texts, err := l.texts(ctx, secret)
		if err != nil {
			return nil, fmt.Errorf("values of the %s: %w", l.kind, err)
		}
		for _, t := range texts {
			var v map[string]any
			if err := yaml.Unmarshal(t.text, &v); err != nil {
				return nil, fmt.Errorf("values of the %s: %s is no YAML of keys and values: %w", l.kind, t.from, err)
			}
			all = loader.MergeMaps(all, v)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(c.Spec.Set)) {
		if err := set(all, path, c.Spec.Set[path]); err != nil {
			return nil, fmt.Errorf("values of the %s: set %s: %w", chartKind, path, err)
		}
	}
	return all, nil
}

// text is one of several sources of values, and where it is from.
type text struct {
	from string
	text []byte
}

func (o overrides) texts(ctx context.Context, secret readSecret) ([]text, error) {
	all := []text{{"valuesContent", []byte(o.ValuesContent)}, {"values", o.Values}}
	for _, ref := range o.ValuesSecrets {
		data, err := secret(ctx, ref.Name)
		if err != nil {
			return nil, err
		}
		keys := ref.Keys
		if len(keys) == 0 {
			keys = slices.Sorted(maps.Keys(data))
		}
		for _, key := range keys {
			value, ok := data[key]
			if !ok {
				return nil, fmt.Errorf("secret %s has no key %s", ref.Name, key)
			}
			all = append(all, text{"key " + key + " of Secret " + ref.Name, value})
		}
	}
	return all, nil
}

// set is `helm --set` for numbers and what looks like a truth value, and
// `helm --set-string` for other text, whose commas divide nothing.
func set(into map[string]any, path string, v intstr.IntOrString) error {
	if v.Type == intstr.Int || slices.Contains([]string{"true", "false", "null"}, strings.ToLower(v.StrVal)) {
		return strvals.ParseInto(path+"="+v.String(), into)
	}
	return strvals.ParseIntoString(path+"="+escapeCommas(v.StrVal), into)
}

// escapeCommas puts a backslash before commas that have none.
func escapeCommas(s string) string {
	var b strings.Builder
	escaped := false
	for _, r := range s {
		if r == ',' && !escaped {
			b.WriteByte('\\')
		}
		escaped = r == '\\' && !escaped
		b.WriteRune(r)
	}
	return b.String()
}

// secretsOf reads those of a namespace.
func (c *Controller) secretsOf(namespace string) readSecret {
	return func(ctx context.Context, name string) (map[string][]byte, error) {
		s, err := c.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
		}
		return s.Data, nil
	}
}
