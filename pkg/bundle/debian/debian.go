// Package debian takes programs with all that they are linked with, and other
// files, out of Debian's packages, also of those for other processors. What Knarr
// carries comes by it, and what its container image has besides.
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
)

// Arch is a processor as Debian calls it.
type Arch struct {
	Name   string // of packages
	Folder string // of libraries, below /lib; compilers have it before their name
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
	// Dir has what the packages have, as it lies below / where they are installed.
	Dir string
	// Packages are those that were fetched, in the order of their files' names.
	Packages []Package
}

// Package is one of a Root.
type Package struct {
	Name, Version string
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
	r := &Root{Dir: filepath.Join(dir, "root")}
	for _, f := range files {
		if _, err := run(ctx, debs, "dpkg-deb", "-x", f, r.Dir); err != nil {
			return nil, err
		}
		about, err := run(ctx, debs, "dpkg-deb", "-W", "--showformat=${Package} ${Version}", f)
		if err != nil {
			return nil, err
		}
		name, version, _ := strings.Cut(about, " ")
		r.Packages = append(r.Packages, Package{name, version})
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
	names, err := filepath.Glob(filepath.Join(r.Dir, pattern))
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

// Copyright is the text of a package's licences.
func (r *Root) Copyright(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(r.Dir, "usr/share/doc", name, "copyright"))
}

// Object is a program or what it needs to run.
type Object struct {
	Name string
	// Loader is the path at which programs look for it, where it is their loader.
	Loader string
	Data   []byte
}

// Closure are programs by their file names, and all that they need: libraries,
// theirs, and the loader.
func (r *Root) Closure(names ...string) ([]Object, error) {
	found, err := r.objects()
	if err != nil {
		return nil, err
	}
	return closure(found, names)
}

func closure(found map[string]string, names []string) ([]Object, error) {
	var all []Object
	done, loaders := map[string]bool{}, map[string]string{}
	for todo := slices.Clone(names); len(todo) > 0; todo = todo[1:] {
		name := todo[0]
		if done[name] {
			continue
		}
		done[name] = true
		file, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("%s is in none of the packages", name)
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
		if slices.Contains(names, name) {
			loader, err := interpreter(f)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
			loaders[path.Base(loader)] = loader
			todo = append(todo, path.Base(loader))
		}
		all = append(all, Object{Name: name, Loader: loaders[name], Data: data})
	}
	return all, nil
}

// objects finds programs and libraries by file name. Debian's libraries are links
// to a name with the full version; both lead to the file.
func (r *Root) objects() (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(r.Dir, func(p string, d fs.DirEntry, err error) error {
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
			found[d.Name()] = filepath.Join(r.Dir, to)
		} else {
			found[d.Name()] = filepath.Join(filepath.Dir(p), to)
		}
		return nil
	})
	return found, err
}

// interpreter is the loader that an executable asks for.
func interpreter(f *elf.File) (string, error) {
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return "", errors.New("it names no loader")
	}
	b := make([]byte, f.Progs[i].Filesz)
	if _, err := f.Progs[i].ReadAt(b, 0); err != nil {
		return "", fmt.Errorf("its loader's name: %w", err)
	}
	return string(bytes.TrimRight(b, "\x00")), nil
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
