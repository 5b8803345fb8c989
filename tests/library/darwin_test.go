// Package library tests what an importer of Knarr meets.
package library

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestControlPlaneTypeChecksOnAMac: pkg/cluster and pkg/knarrtest with all that they
// import. Compiling would be a second cold build; what a compiler refuses, types show.
// Of other modules only what they declare is looked at.
func TestControlPlaneTypeChecksOnAMac(t *testing.T) {
	c := checker{fset: token.NewFileSet(), done: map[string]*types.Package{"unsafe": types.Unsafe}}
	list := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,Standard,Module",
		"github.com/knarr-dev/knarr/pkg/cluster", "github.com/knarr-dev/knarr/pkg/knarrtest")
	// With C, as SQLite has it; no C compiler is called.
	list.Env = append(os.Environ(), "GOOS=darwin", "GOARCH=arm64", "CGO_ENABLED=1", "CC=true")
	list.Stderr = os.Stderr
	out, err := list.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := list.Start(); err != nil {
		t.Fatal(err)
	}
	// A package comes after those that it imports.
	for d := json.NewDecoder(out); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, err := range c.check(p) {
			t.Error(err)
		}
	}
	if err := list.Wait(); err != nil {
		t.Fatal(err)
	}
	if c.own < 10 || c.done["github.com/knarr-dev/knarr/pkg/knarrtest"] == nil {
		t.Errorf("%d packages of ours were checked", c.own)
	}
}

type listed struct {
	ImportPath, Dir   string
	GoFiles, CgoFiles []string
	ImportMap         map[string]string
	Standard          bool
	Module            *struct{ Main bool }
}

type checker struct {
	fset *token.FileSet
	done map[string]*types.Package
	own  int
}

// check returns what is wrong with a package of ours. What is wrong with others is
// left to show in those that use it.
func (c *checker) check(p listed) []error {
	if p.ImportPath == "unsafe" {
		return nil
	}
	own := p.Module != nil && p.Module.Main
	var files []*ast.File
	for _, name := range append(p.GoFiles, p.CgoFiles...) {
		f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return []error{err}
		}
		files = append(files, f)
	}
	var errs []error
	cfg := types.Config{
		Importer: imports{c, p.ImportMap}, FakeImportC: true, IgnoreFuncBodies: !own,
		Sizes: types.SizesFor("gc", "arm64"),
		Error: func(err error) {
			// An import that only a body uses is not unused.
			if own && !strings.Contains(err.Error(), "imported and not used") {
				errs = append(errs, err)
			}
		},
	}
	c.done[p.ImportPath], _ = cfg.Check(p.ImportPath, c.fset, files, nil)
	if own {
		c.own++
	}
	return errs
}

// imports finds packages by the paths in a package's files.
type imports struct {
	*checker
	vendored map[string]string
}

func (i imports) Import(path string) (*types.Package, error) {
	if to, ok := i.vendored[path]; ok {
		path = to
	}
	p := i.done[path]
	if p == nil {
		return nil, fmt.Errorf("no package %s", path)
	}
	return p, nil
}
