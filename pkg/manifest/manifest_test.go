package manifest

import (
	"strings"
	"testing"
)

const noteA = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"

func TestDocumentsAreRead(t *testing.T) {
	for name, c := range map[string]struct{ text, want, err string }{
		"several":     {noteA + "---\n# only a comment\n---\n" + strings.Replace(noteA, "name: a", "name: b, namespace: x", 1), "ConfigMap a,ConfigMap x/b", ""},
		"json":        {`{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}`, "Secret s", ""},
		"a list":      {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a}}\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n", "Secret a,Secret b", ""},
		"empty":       {"", "", ""},
		"no yaml":     {"a: [", "", "document 1:"},
		"no kind":     {noteA + "---\napiVersion: v1\nmetadata: {name: a}\n", "", "document 2: it has no kind"},
		"no version":  {"kind: Pod\nmetadata: {name: a}\n", "", "document 1: Pod has no apiVersion"},
		"no name":     {"apiVersion: v1\nkind: Pod\n", "", "document 1: Pod has no metadata.name"},
		"no own name": {"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}\n", "", "generateName"},
		"just text":   {"hello\n", "", "document 1:"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := Parse([]byte(c.text))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error is %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, o := range objects {
				names = append(names, o.GetKind()+" "+strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/"))
			}
			if got := strings.Join(names, ","); got != c.want {
				t.Errorf("read %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add(noteA + "---\n" + noteA)
	f.Add(`{"kind": "List", "apiVersion": "v1", "items": [{}]}`)
	f.Add("- a")
	f.Add("items: 1\nkind: List\napiVersion: v1\n")
	f.Fuzz(func(t *testing.T, text string) {
		objects, err := Parse([]byte(text))
		for _, o := range objects {
			if err == nil && (o.GetKind() == "" || o.GetName() == "" || o.GetAPIVersion() == "") {
				t.Errorf("%q: an object without a name is let through: %v", text, o.Object)
			}
		}
	})
}
