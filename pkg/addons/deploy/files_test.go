package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lay makes files in a new folder; a content that begins with "->" makes a link.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, link := strings.CutPrefix(content, "->"); err == nil && link {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const noteA = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"

func TestFilesOfTheFolderAreFound(t *testing.T) {
	outside := lay(t, map[string]string{"x.yaml": noteA, "sub/y.yaml": noteA})
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
		skips []string
	}{
		"yaml and json, in folders": {
			map[string]string{"b.yml": noteA, "a.yaml": noteA, "d/e/c.JSON": "{}", "readme.txt": "?", ".hidden.yaml": noteA},
			[]string{"a.yaml", "b.yml", "d/e/c.JSON"}, nil},
		"links to files and folders": {
			map[string]string{"l.yaml": "->" + outside + "/x.yaml", "far": "->" + outside + "/sub"},
			[]string{"far/y.yaml", "l.yaml"}, nil},
		"links in a circle":  {map[string]string{"a/b.yaml": noteA, "a/up": "->..", "self": "->."}, []string{"a/b.yaml"}, nil},
		"a link to nowhere":  {map[string]string{"gone.yaml": "->nowhere", "gone": "->nowhere"}, []string{"gone.yaml"}, nil},
		"skipped":            {map[string]string{"a.yaml": noteA, "a.yaml.skip": "", "b.yaml": noteA}, []string{"b.yaml"}, []string{"a.yaml"}},
		"skipped folder":     {map[string]string{"d/a.yaml": noteA, "d.skip": "", "b.yaml": noteA}, []string{"b.yaml"}, []string{"d", "d/a.yaml"}},
		"skipped, not there": {map[string]string{"a.yaml.skip": ""}, nil, []string{"a.yaml"}},
		"a kustomization":    {map[string]string{"k/kustomization.yaml": "resources: [n.yaml]\n", "k/n.yaml": noteA}, []string{"k"}, nil},
		"not at the top":     {map[string]string{"kustomization.yaml": "resources: [n.yaml]\n", "n.yaml": noteA}, []string{"kustomization.yaml", "n.yaml"}, nil},
		"an empty folder":    {nil, nil, nil},
		"what editors leave": {map[string]string{"a.yaml~": "", "a.yaml.swp": "", "a.yaml.bak": ""}, nil, nil},
		"a kustomization's own base": {
			map[string]string{"base.skip": "", "base/kustomization.yaml": "resources: [n.yaml]\n", "base/n.yaml": noteA, "over/kustomization.yaml": "resources: [../base]\n"},
			[]string{"over"}, []string{"base"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := lay(t, c.files)
			got, err := readTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, s := range got.sources {
				paths = append(paths, s.path)
				if (s.err != nil) != (s.sum == "") {
					t.Errorf("%s: error %v, sum %q", s.path, s.err, s.sum)
				}
			}
			if !slices.Equal(paths, c.want) {
				t.Errorf("found %q, want %q", paths, c.want)
			}
			for _, s := range c.skips {
				if !got.skips(s) {
					t.Errorf("%s is not skipped", s)
				}
			}
			real, err := filepath.EvalSymlinks(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(got.folders, real) {
				t.Errorf("%s is not watched, but %q", real, got.folders)
			}
		})
	}
}

func TestWhatCannotBeReadIsNoReasonToPrune(t *testing.T) {
	dir := lay(t, map[string]string{"gone.yaml": "->nowhere", "k/kustomization.yaml": "resources: [missing.yaml]\n"})
	got, err := readTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.sources) != 2 || got.sources[0].err == nil || got.sources[1].err == nil {
		t.Errorf("found %+v, want two sources with errors", got.sources)
	}
}

func TestRecordsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]string{}
	for _, path := range []string{"a.yaml", "A.yaml", "a/yaml", "a-yaml", "ä.yaml", strings.Repeat("long/", 60) + "a.yaml", strings.Repeat("long/", 60) + "b.yaml", "---.yaml"} {
		name := recordName(path)
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s have one name, %s", path, other, name)
		}
		seen[name] = path
		if len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%s: %s is no name of a ConfigMap", path, name)
		}
	}
}

func TestWhatOthersNeedComesFirst(t *testing.T) {
	order := []string{"CustomResourceDefinition", "Namespace", "ServiceAccount", "Service", "Deployment", "MutatingWebhookConfiguration"}
	for i := range order[1:] {
		if rank(order[i]) >= rank(order[i+1]) {
			t.Errorf("%s does not come before %s", order[i], order[i+1])
		}
	}
}
