package storage

import (
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPathsAreReadAsLocalPathProvisionerReadsThem(t *testing.T) {
	const listed = `{"nodePathMap":[
		{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/opt/local-path-provisioner"]},
		{"node":"two","paths":["/data1/","/data2"]},
		{"node":"none","paths":[]}]}`
	for _, c := range []struct{ text, node, want string }{
		{listed, "two", "/data1 /data2"},
		{listed, "other", "/opt/local-path-provisioner"},
		{listed, "none", "gives node none no path"},
		{`{"nodePathMap":[{"node":"a","paths":["/x"]}]}`, "b", "gives node b no path"},
		{`{"nodePathMap":[{"node":"a","paths":["x"]}]}`, "a", "must be absolute"},
		{`{"nodePathMap":[{"node":"a","paths":["/"]}]}`, "a", "not the root"},
		{`{"nodePathMap":[{"node":"a","paths":["/.."]}]}`, "a", "not the root"},
		{`{"sharedFileSystemPath":"/nfs"}`, "a", "not supported"},
		{`{"nodePathMap":`, "a", "is not JSON"},
		{"", "a", "is not JSON"},
	} {
		paths, err := pathsOf(c.text, c.node)
		said := strings.Join(paths, " ")
		if err != nil {
			said = err.Error()
		}
		if err == nil && said != c.want || !strings.Contains(said, c.want) {
			t.Errorf("%s for %s: %s, want %s", c.text, c.node, said, c.want)
		}
	}
}

func claim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "1", Labels: map[string]string{"up": ".."}}}
}

func TestFoldersStayBelowTheNodesPath(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                                   "pvc-1_ns_c",
		"{{ .PVC.Namespace }}/{{ .PVName }}": "ns/pvc-1",
		"a/..":                               "is not a folder below",
		"..":                                 "is not a folder below",
		"../{{ .PVC.Name }}":                 "is not a folder below",
		"{{ .PVC.Labels.up }}/etc":           "is not a folder below",
		"a/../../etc":                        "is not a folder below",
		"/etc":                               "is not a folder below",
		".":                                  "is not a folder below",
		"a//b":                               "is not a folder below",
		"a/":                                 "is not a folder below",
		"{{ .PVC.Labels.missing }}":          "missing",
		"{{ .PVC.Spec }}":                    "Spec",
		"{{":                                 "pathPattern",
	} {
		folder, err := subfolder(pattern, "pvc-1", claim("c"))
		said := folder
		if err != nil {
			said = err.Error()
		}
		if err == nil && said != want || !strings.Contains(said, want) {
			t.Errorf("%s: %s, want %s", pattern, said, want)
		}
	}
}

func TestVolumesAreFoundInTheNodesPaths(t *testing.T) {
	paths := []string{"/data", "/data/deep", "/disk"}
	for path, want := range map[string]string{
		"/data/v":          "/data v",
		"/data/deep/v":     "/data/deep v",
		"/disk/ns/v":       "/disk ns/v",
		"/disk":            "",
		"/disks/v":         "",
		"/disk/../etc":     "",
		"/disk/v/":         "",
		"/":                "",
		"etc":              "",
		"/etc/passwd":      "",
		"/data/deep":       "/data deep",
		"/disk/./v":        "",
		"/disk/ns/../../v": "",
	} {
		base, folder, err := split(path, paths)
		if got := strings.TrimSpace(base + " " + folder); err == nil && got != want || err != nil && want != "" {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

func FuzzSplitNeverLeadsOut(f *testing.F) {
	f.Add("/disk/v", "a/b")
	f.Add("/disk/../etc", "../x")
	f.Fuzz(func(t *testing.T, path, pattern string) {
		if base, folder, err := split(path, []string{"/disk"}); err == nil {
			if full := filepath.Join(base, folder); !strings.HasPrefix(full, "/disk/") || full != path {
				t.Errorf("%q became %q", path, full)
			}
		}
		if folder, err := subfolder(pattern, "pvc-1", claim("c")); err == nil && !strings.HasPrefix(filepath.Join("/disk", folder), "/disk/") {
			t.Errorf("%q became %q", pattern, folder)
		}
	})
}

func TestOneVolumeNeverLiesInAnother(t *testing.T) {
	others := []string{"/disk/a/b", "/disk/c"}
	for path, want := range map[string]string{
		"/disk/a": "/disk/a/b", "/disk/a/b": "/disk/a/b", "/disk/a/b/c": "/disk/a/b", "/disk/a/bc": "", "/disk/cd": "", "/disk/c/d": "/disk/c",
	} {
		if got := used(path, others); got != want {
			t.Errorf("%s overlaps with %q, want %q", path, got, want)
		}
	}
}
