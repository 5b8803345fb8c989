// Package assets has Knarr stand in for the programs that tests of controllers
// start: envtest, of controller-runtime, looks for kube-apiserver, etcd and kubectl
// in the folder that KUBEBUILDER_ASSETS names. Links to Knarr by these names make
// it that folder.
package assets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Names are the programs that the folder has.
func Names() []string { return []string{"kube-apiserver", "etcd", "kubectl"} }

// Link makes dir a folder of links to an executable. Links that lead elsewhere are
// replaced; files that are none are left alone, and are an error.
func Link(dir, exe string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make folder of links: %w", err)
	}
	for _, name := range Names() {
		path := filepath.Join(dir, name)
		if to, err := os.Readlink(path); err == nil && to == exe {
			continue
		}
		if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("link %s to Knarr: a file is there that is no link; name another folder, or move it away", path)
		}
		// In one step, for whoever starts it meanwhile.
		next := path + ".new"
		if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("link %s to Knarr: %w", path, err)
		}
		if err := os.Symlink(exe, next); err != nil {
			return fmt.Errorf("link %s to Knarr: %w", path, err)
		}
		if err := os.Rename(next, path); err != nil {
			return fmt.Errorf("link %s to Knarr: %w", path, err)
		}
	}
	return nil
}
