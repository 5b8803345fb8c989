package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestExecutablesAreTakenApartIntoTheirModules(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var texts [2]string
	for i := range texts {
		out := filepath.Join(dir, "sbom.json")
		if err := run("v1.2.3", "2026-11-28T00:00:00Z", "", out, []string{self}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(text)
	}
	if texts[0] != texts[1] {
		t.Error("twice the same gave two documents")
	}
	var d document
	if err := json.Unmarshal([]byte(texts[0]), &d); err != nil {
		t.Fatal(err)
	}
	var zstd *spdxPackage
	ids := map[string]bool{}
	for i, p := range d.Packages {
		if ids[p.SPDXID] {
			t.Errorf("%s is there twice", p.SPDXID)
		}
		ids[p.SPDXID] = true
		if p.Name == "github.com/klauspost/compress" {
			zstd = &d.Packages[i]
		}
	}
	if zstd == nil || !strings.HasPrefix(zstd.ExternalRefs[0].Locator, "pkg:golang/github.com/klauspost/compress@v1.") {
		t.Errorf("a module of this test is described as %+v", zstd)
	}
	for _, r := range d.Relationships {
		if r.Element != d.SPDXID && !ids[r.Element] || !ids[r.Related] {
			t.Errorf("a relationship of what is not there: %+v", r)
		}
	}
	if !slices.ContainsFunc(d.Packages, func(p spdxPackage) bool { return p.Name == "stdlib" }) {
		t.Error("the standard library is missing")
	}
	if err := run("v1", "2026-11-28T00:00:00Z", "", filepath.Join(dir, "x"), []string{"main.go"}); err == nil {
		t.Error("a text was taken for an executable")
	}
}
