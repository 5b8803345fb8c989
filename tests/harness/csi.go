package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// CSI gives the image archives of a CSI driver and its sidecars, and the
// manifests that run them.
func CSI(t testing.TB) (archives []string, manifests string) {
	t.Helper()
	p, err := findParts()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(p.testImage), "csi")
	text, err := os.ReadFile(filepath.Join(dir, "manifests.yaml"))
	if err == nil {
		archives, err = filepath.Glob(filepath.Join(dir, "*.tar"))
	}
	if err == nil && len(archives) == 0 {
		err = fmt.Errorf("no archive in %s", dir)
	}
	if err != nil {
		t.Fatalf("the CSI driver has to be built before: run `make csi`: %v", err)
	}
	return archives, string(text)
}
