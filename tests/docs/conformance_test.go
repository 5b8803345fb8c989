package docs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Each row of docs/conformance.md stands for so many entries of Kubernetes' list
// as its first cell says.
func TestConformanceMapHasEveryEntry(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "test", "conformance", "testdata", "conformance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]int{}
	for _, m := range regexp.MustCompile(`codename: '?\[(sig-[a-z-]+)\]`).FindAllSubmatch(list, -1) {
		entries[string(m[1])]++
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	sig := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "## "); ok {
			sig = name
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		n, err := strconv.Atoi(cells[0])
		if !strings.HasPrefix(line, "| ") || len(cells) != 3 || err != nil {
			continue
		}
		entries[sig] -= n
		for _, problem := range check(root, cells[2]) {
			t.Errorf("%s: %s: %s", sig, cells[1], problem)
		}
	}
	for sig, n := range entries {
		if n != 0 {
			t.Errorf("%s: %d entries more in Kubernetes' list than in docs/conformance.md", sig, n)
		}
	}
}
