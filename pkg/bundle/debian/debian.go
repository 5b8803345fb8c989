// Package debian takes programs with all that they are linked with, and other
// files, out of Debian's packages, also of those for other processors.
package debian

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

// Arch is a processor as Debian calls it.
type Arch struct {
	Name   string // of packages
	Folder string // of libraries, below /lib
}

// ArchOf tells what Debian calls a GOARCH. arm is ARMv7.
func ArchOf(goarch string) (Arch, error) {
	all := map[string]Arch{
		"amd64": {"amd64", "x86_64-linux-gnu"},
		"arm64": {"arm64", "aarch64-linux-gnu"},
		"arm":   {"armhf", "arm-linux-gnueabihf"},
	}
	a, ok := all[goarch]
	if !ok {
		return a, fmt.Errorf("processor %s: known are amd64, arm64 and arm", goarch)
	}
	return a, nil
}

// Root is a folder that packages were unpacked into.
type Root struct {
	dir  string
	arch Arch
}

// Unpack fetches packages by apt-get, with the lists and from the mirrors that
// this machine has, and unpacks them below dir, which must be empty. Lists for
// another processor than the machine's own are kept there, too. Nothing is
// installed.
func Unpack(ctx context.Context, dir string, arch Arch, packages ...string) (*Root, error) {
	debs := filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return nil, err
	}
	own, err := run(ctx, dir, "dpkg", "--print-architecture")
	if err != nil {
		return nil, err
	}
	var options []string
	var stale error
	if strings.TrimSpace(own) != arch.Name {
		if options, stale, err = foreign(ctx, filepath.Join(dir, "apt"), arch); err != nil {
			return nil, err
		}
	}
	if _, err := run(ctx, debs, "apt-get", slices.Concat(options, []string{"download", "-q"}, packages)...); err != nil {
		return nil, errors.Join(stale, fmt.Errorf("%w; is there a package list (apt-get update)?", err))
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return nil, err
	}
	r := &Root{dir: filepath.Join(dir, "root"), arch: arch}
	for _, f := range files {
		if _, err := run(ctx, debs, "dpkg-deb", "-x", f, r.dir); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// foreign returns options with which apt-get fetches packages of another
// processor, of which neither it nor dpkg of this machine has to know. That some
// source has none is told by stale, and matters only if a package is then missing.
func foreign(ctx context.Context, dir string, arch Arch) (options []string, stale, err error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, nil, err
		}
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, nil, err
	}
	for _, o := range []string{
		"APT::Architecture=" + arch.Name, "APT::Architectures=" + arch.Name, "APT::Sandbox::User=root", "Acquire::Languages=none",
		"Dir::State=" + filepath.Join(dir, "state"), "Dir::Cache=" + filepath.Join(dir, "cache"), "Dir::State::status=" + status,
	} {
		options = append(options, "-o", o)
	}
	_, stale = run(ctx, dir, "apt-get", append(slices.Clone(options), "-q", "update")...)
	return options, stale, nil
}

// Glob are the contents of the files that a pattern of path.Match matches, in the
// order of their names.
func (r *Root) Glob(pattern string) ([][]byte, error) {
	names, err := filepath.Glob(filepath.Join(r.dir, pattern))
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, n := range names {
		data, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the packages have no %s", pattern)
	}
	return all, nil
}

// Programs are programs for usr/bin, the loader where they look for it, and the
// libraries where it does.
func (r *Root) Programs(names ...string) ([]ocitar.File, error) {
	found, err := r.objects()
	if err != nil {
		return nil, err
	}
	var files []ocitar.File
	done := map[string]bool{}
	for todo := slices.Clone(names); len(todo) > 0; todo = todo[1:] {
		name := todo[0]
		if done[name] {
			continue
		}
		done[name] = true
		file, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("the packages have no %s", name)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		needs, err := f.ImportedLibraries()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		todo = append(todo, needs...)
		as, mode := path.Join("lib", r.arch.Folder, name), fs.FileMode(0o644)
		if slices.Contains(names, name) {
			as, mode = path.Join("usr/bin", name), 0o755
		}
		if loader := interpreter(f); loader != "" && !done[path.Base(loader)] {
			done[path.Base(loader)] = true
			data, err := os.ReadFile(found[path.Base(loader)])
			if err != nil {
				return nil, fmt.Errorf("take the loader of %s: %w", name, err)
			}
			files = append(files, ocitar.File{Name: strings.TrimPrefix(loader, "/"), Mode: 0o755, Data: data})
		}
		files = append(files, ocitar.File{Name: as, Mode: mode, Data: data})
	}
	return files, nil
}

// objects finds programs and libraries by file name. Debian's libraries are links
// to a name with the full version; both lead to the file.
func (r *Root) objects() (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 {
			if _, linked := found[d.Name()]; !linked {
				found[d.Name()] = p
			}
			return nil
		}
		to, err := os.Readlink(p)
		if err != nil || !strings.Contains(d.Name(), ".so") {
			return err
		}
		if path.IsAbs(to) {
			found[d.Name()] = filepath.Join(r.dir, to)
		} else {
			found[d.Name()] = filepath.Join(filepath.Dir(p), to)
		}
		return nil
	})
	return found, err
}

// interpreter is the loader that an executable asks for, "" if it asks for none.
func interpreter(f *elf.File) string {
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return ""
	}
	b := make([]byte, f.Progs[i].Filesz)
	if _, err := f.Progs[i].ReadAt(b, 0); err != nil {
		return ""
	}
	return string(bytes.TrimRight(b, "\x00"))
}

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Stdout, c.Stderr = dir, &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
