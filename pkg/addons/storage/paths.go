package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	corev1 "k8s.io/api/core/v1"
)

const (
	// PathsConfigMap in kube-system says where on each node volumes are, in the form
	// that Rancher's local-path-provisioner reads: see its README, "Customize the
	// ConfigMap".
	PathsConfigMap = "local-path-config"
	pathsKey       = "config.json"
	// otherNodes stands for every node that the list does not name.
	otherNodes = "DEFAULT_PATH_FOR_NON_LISTED_NODES"

	// The parameters of a StorageClass: one of the node's paths, and a template of
	// the folder below it.
	paramPath    = "nodePath"
	paramPattern = "pathPattern"
)

// pathsConfig is config.json.
type pathsConfig struct {
	NodePathMap []struct {
		Node  string   `json:"node"`
		Paths []string `json:"paths"`
	} `json:"nodePathMap"`
	SharedFileSystemPath string          `json:"sharedFileSystemPath"`
	StorageClassConfigs  json.RawMessage `json:"storageClassConfigs"`
}

// pathsOf reads which folders a node may have volumes in.
func pathsOf(text, node string) ([]string, error) {
	var c pathsConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("%s of ConfigMap kube-system/%s is not JSON: %w", pathsKey, PathsConfigMap, err)
	}
	if c.SharedFileSystemPath != "" || len(c.StorageClassConfigs) > 0 && string(c.StorageClassConfigs) != "null" {
		return nil, fmt.Errorf("%s of ConfigMap kube-system/%s: sharedFileSystemPath and storageClassConfigs are not supported; use nodePathMap", pathsKey, PathsConfigMap)
	}
	paths, known := []string(nil), false
	for _, name := range []string{node, otherNodes} {
		for _, n := range c.NodePathMap {
			if n.Node == name && !known {
				paths, known = n.Paths, true
			}
		}
	}
	if !known || len(paths) == 0 {
		return nil, fmt.Errorf("ConfigMap kube-system/%s gives node %s no path for volumes", PathsConfigMap, node)
	}
	var clean []string
	for _, p := range paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
			return nil, fmt.Errorf("path %q of node %s in ConfigMap kube-system/%s must be absolute, and not the root", p, node, PathsConfigMap)
		}
		clean = append(clean, filepath.Clean(p))
	}
	return clean, nil
}

// choose picks the folder of a volume: the one that its class names, or one of
// them by the volume's name, so that a second attempt comes to the same.
func choose(paths []string, asked, volume string) (string, error) {
	if asked != "" {
		if !slices.Contains(paths, filepath.Clean(asked)) {
			return "", fmt.Errorf("%s %s of the StorageClass is none of the node's paths %s in ConfigMap kube-system/%s", paramPath, asked, strings.Join(paths, ", "), PathsConfigMap)
		}
		return filepath.Clean(asked), nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(volume)) // a hash takes everything
	return paths[int(h.Sum32()%uint32(len(paths)))], nil
}

// subfolder is where a claim's volume is below one of the node's paths.
func subfolder(pattern, volume string, claim *corev1.PersistentVolumeClaim) (string, error) {
	if pattern == "" {
		return strings.Join([]string{volume, claim.Namespace, claim.Name}, "_"), nil
	}
	t, err := template.New(paramPattern).Option("missingkey=error").Parse(pattern)
	if err != nil {
		return "", fmt.Errorf("%s of the StorageClass: %w", paramPattern, err)
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"PVName": volume,
		"PVC": map[string]any{
			"Name": claim.Name, "Namespace": claim.Namespace, "Labels": claim.Labels, "Annotations": claim.Annotations,
		},
	})
	if err != nil {
		return "", fmt.Errorf("%s of the StorageClass: %w", paramPattern, err)
	}
	folder := out.String()
	if err := checkSubfolder(folder); err != nil {
		return "", fmt.Errorf("%s of the StorageClass: %w", paramPattern, err)
	}
	return folder, nil
}

// checkSubfolder refuses what is not plainly a folder below another one.
func checkSubfolder(folder string) error {
	if !filepath.IsLocal(folder) || filepath.Clean(folder) != folder || folder == "." || strings.ContainsAny(folder, "\x00\n") {
		return fmt.Errorf("%q is not a folder below the node's path: it must be relative, without \"..\", \".\" and doubled slashes", folder)
	}
	return nil
}

// errOutside tells that a volume is in none of the node's folders.
var errOutside = errors.New("outside")

// split takes a volume's path apart into one of the node's paths and the folder
// below.
func split(path string, paths []string) (base, folder string, err error) {
	if filepath.Clean(path) != path {
		return "", "", fmt.Errorf("path %s is not in its shortest form: %w", path, errOutside)
	}
	for _, p := range paths {
		if below, ok := strings.CutPrefix(path, p+"/"); ok && len(p) > len(base) {
			base, folder = p, below
		}
	}
	if base == "" {
		return "", "", fmt.Errorf("%s is in none of the node's paths %s: put its path back into ConfigMap kube-system/%s, or delete the folder and the PersistentVolume by hand: %w", path, strings.Join(paths, ", "), PathsConfigMap, errOutside)
	}
	return base, folder, checkSubfolder(folder)
}

// overlap tells whether one of two folders is the other or lies in it.
func overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}
