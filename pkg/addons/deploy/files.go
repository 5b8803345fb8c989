package deploy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// skipSuffix on the name of an empty file beside a file or folder leaves that
// alone: what it made stays, and is changed by nobody. k3s' convention.
const skipSuffix = ".skip"

// source is what is applied, and pruned, as one: a file with documents, or a
// folder with a kustomization.
type source struct {
	// path is relative to the manifests folder.
	path string
	// sum identifies the content; empty if it could not be read.
	sum string
	// text is all documents.
	text []byte
	// err tells why it could not be read.
	err error
}

// tree is what a look at the manifests folder found.
type tree struct {
	sources []source // in the order of their paths
	folders []string // to be watched
	skipped []string // paths, relative, that are left alone with all below them
}

// skips tells whether a path is to be left alone.
func (t *tree) skips(path string) bool {
	return slices.ContainsFunc(t.skipped, func(s string) bool { return path == s || strings.HasPrefix(path, s+"/") })
}

// readTree reads everything in the manifests folder. Links are followed; a
// folder that is met twice on one way down is not entered again.
func readTree(root string) (*tree, error) {
	t := &tree{}
	if err := t.walk(root, "", nil); err != nil {
		return nil, err
	}
	slices.SortFunc(t.sources, func(a, b source) int { return strings.Compare(a.path, b.path) })
	slices.Sort(t.folders)
	t.folders = slices.Compact(t.folders)
	return t, nil
}

// walk reads the folder root/dir. above are the real paths of those that lead there.
func (t *tree) walk(root, dir string, above []string) error {
	full := filepath.Join(root, dir)
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return fmt.Errorf("follow %s: %w", full, err)
	}
	if slices.Contains(above, real) {
		return nil
	}
	above = append(above[:len(above):len(above)], real)
	entries, err := os.ReadDir(full)
	if err != nil {
		return fmt.Errorf("read manifests folder: %w", err)
	}
	t.folders = append(t.folders, real)
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	if dir != "" && slices.ContainsFunc(konfig.RecognizedKustomizationFileNames(), func(n string) bool { return names[n] }) {
		t.sources = append(t.sources, t.kustomize(dir, full))
		return t.watchBelow(full)
	}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(dir, name)
		if names[name+skipSuffix] {
			t.skipped = append(t.skipped, path)
			continue
		}
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, skipSuffix) {
			// A mark also stands for what is not there at the moment.
			if of, ok := strings.CutSuffix(path, skipSuffix); ok && !strings.HasPrefix(name, ".") {
				t.skipped = append(t.skipped, of)
			}
			continue
		}
		if err := t.entry(root, path, above); err != nil {
			return err
		}
	}
	return nil
}

// entry reads what a folder has under one name.
func (t *tree) entry(root, path string, above []string) error {
	full := filepath.Join(root, path)
	info, err := os.Stat(full)
	if errors.Is(err, fs.ErrNotExist) && !isManifest(path) {
		return nil // it went meanwhile, or is a link to nowhere
	}
	if err == nil && info.IsDir() {
		return t.walk(root, path, above)
	}
	if !isManifest(path) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(full); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	s := source{path: path}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a file")
	}
	if err == nil {
		// A link's target changes elsewhere.
		if real, err := filepath.EvalSymlinks(full); err == nil && filepath.Dir(real) != above[len(above)-1] {
			t.folders = append(t.folders, filepath.Dir(real))
		}
		s.text, err = os.ReadFile(full)
	}
	if err != nil {
		s.err = fmt.Errorf("read manifest: %w", err)
	} else {
		s.sum = sumOf(s.text)
	}
	t.sources = append(t.sources, s)
	return nil
}

func isManifest(path string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path)))
}

// kustomize renders a folder as `kubectl kustomize` does.
func (t *tree) kustomize(path, full string) source {
	s := source{path: path}
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), full)
	if err == nil {
		s.text, err = made.AsYaml()
	}
	if err != nil {
		s.err = fmt.Errorf("build kustomization: %w", err)
		return s
	}
	s.sum = sumOf(s.text)
	return s
}

// watchBelow has all folders of a kustomization watched.
func (t *tree) watchBelow(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			t.folders = append(t.folders, path)
		}
		return nil // what can't be read, the kustomization has complained about
	})
}

func sumOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
