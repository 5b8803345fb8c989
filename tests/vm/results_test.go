package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestResultsReplaceThoseOfTheRunBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testing.md")
	if err := os.WriteFile(path, []byte("# Page\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, commit := range []string{"first", "second"} {
		r := &results{commit: commit, began: time.Now(), machine: "one", steps: []step{{"boots", "passed", time.Second}}}
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	if !strings.HasPrefix(got, "# Page\n") || strings.Contains(got, "first") || strings.Count(got, "second") != 1 || strings.Count(got, beginMark) != 1 {
		t.Errorf("the page is\n%s", got)
	}
	if !strings.Contains(got, "| boots | passed | 1s |") {
		t.Errorf("no row of the step in\n%s", got)
	}
}
