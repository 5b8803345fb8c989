package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/pack"
)

// buildProgram builds the packages of p, static and stripped, in a module of
// their own: `go install` refuses modules that have replace lines, and the
// programs must get the dependencies of their own release, not ours.
//
// C libraries of another machine are those unpacked below root.
func buildProgram(ctx context.Context, work, root string, t target, p program, licenses *bytes.Buffer) ([]pack.File, error) {
	dir := filepath.Join(work, strings.ReplaceAll(p.module, "/", "_"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	goVersion := strings.TrimPrefix(runtime.Version(), "go")
	mod := fmt.Sprintf("module bundle\n\ngo %s\n\nrequire %s %s\n", goVersion, p.module, p.version)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		return nil, err
	}
	ldflags := "-s -w -buildid= " + p.ldflags
	cgo := "CGO_ENABLED=0"
	if p.cgo {
		cgo = "CGO_ENABLED=1"
		ldflags += " -linkmode external -extldflags -static"
	}
	// The caller's flags and workspace are for another module.
	env := append([]string{"GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local", cgo}, t.env(root)...)
	args := []string{"build", "-mod=mod", "-trimpath", "-buildvcs=false", "-tags", p.tags, "-ldflags", ldflags, "-o", filepath.Join(dir, "out") + "/"}
	var names []string
	for _, pkg := range p.packages {
		full := path.Join(p.module, pkg)
		args = append(args, full)
		names = append(names, path.Base(full))
	}
	if _, err := command(ctx, dir, env, "go", args...); err != nil {
		return nil, err
	}
	var files []pack.File
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(dir, "out", n))
		if err != nil {
			return nil, err
		}
		if err := static(data); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if n == "runc" {
			line := t.run(filepath.Join(dir, "out", n), "features")
			features, err := command(ctx, dir, nil, line[0], line[1:]...)
			if err != nil {
				return nil, err
			}
			if !strings.Contains(features, "SCMP_ACT_ERRNO") {
				return nil, fmt.Errorf("runc was built without seccomp; is libseccomp-dev installed?")
			}
		}
		files = append(files, pack.File{Name: path.Join(p.dir, n), Mode: 0o755, Data: data})
	}
	source, err := command(ctx, dir, env, "go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", p.module)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(source), "LICENSE"))
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(licenses, "==== %s %s\n\n%s\n", p.module, p.version, text)
	return files, nil
}

// static returns an error if an executable needs a loader or libraries.
func static(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not an executable: %w", err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		libs, _ := f.ImportedLibraries()
		return fmt.Errorf("not static: it wants %s", strings.Join(libs, ", "))
	}
	return nil
}
