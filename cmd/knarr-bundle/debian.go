package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/pack"
)

// fetchPackages unpacks nft, the libraries it needs and those that programs of
// another machine are linked with. It returns where, and nft's version.
func fetchPackages(ctx context.Context, work string, t target, licenses *bytes.Buffer) (root, version string, err error) {
	debs := filepath.Join(work, "debs")
	root = filepath.Join(work, "debian")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return "", "", err
	}
	options, stale, err := t.apt(ctx, work)
	if err != nil {
		return "", "", err
	}
	args := slices.Concat(options, []string{"download", "-q"}, debian(), t.libraries())
	if _, err := command(ctx, debs, nil, "apt-get", args...); err != nil {
		return "", "", errors.Join(stale, fmt.Errorf("%w; is there a package list (apt-get update)?", err))
	}
	paths, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return "", "", err
	}
	for _, p := range paths {
		if _, err := command(ctx, debs, nil, "dpkg-deb", "-x", p, root); err != nil {
			return "", "", err
		}
		about, err := command(ctx, debs, nil, "dpkg-deb", "-W", "--showformat=${Package} ${Version}", p)
		if err != nil {
			return "", "", err
		}
		name, v, _ := strings.Cut(about, " ")
		if name == "nftables" {
			version = v
		}
		text, err := os.ReadFile(filepath.Join(root, "usr/share/doc", name, "copyright"))
		if err != nil {
			return "", "", err
		}
		fmt.Fprintf(licenses, "==== Debian %s %s\n\n%s\n", name, v, text)
	}
	return root, version, nil
}

// takeNFT collects Debian's nft with every library it needs and the loader,
// for lib/nft.
func takeNFT(root string) ([]pack.File, error) {
	libs, err := objects(root)
	if err != nil {
		return nil, err
	}
	return closure(libs, "nft")
}

// objects finds programs and libraries below root, by file name. Debian's
// libraries are links to a name with the full version; both lead to the file.
func objects(root string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 {
			found[d.Name()] = p
			return nil
		}
		to, err := os.Readlink(p)
		if err != nil {
			return err
		}
		if strings.Contains(d.Name(), ".so") && !path.IsAbs(to) {
			found[d.Name()] = filepath.Join(filepath.Dir(p), to)
		}
		return nil
	})
	return found, err
}

// loaderName is what a running nft is called in the process list: the loader is
// what is executed. It is unlike any other program's, so that changes of the
// rules by others can be told from ours.
const loaderName = "knarr-nft"

// closure collects name and all it needs. The loader is stored as knarr-nft,
// which is what our launcher runs on every processor.
func closure(found map[string]string, name string) ([]pack.File, error) {
	var files []pack.File
	done := map[string]bool{}
	todo := []string{name}
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		if done[n] {
			continue
		}
		done[n] = true
		p, ok := found[n]
		if !ok {
			return nil, fmt.Errorf("%s is in none of the packages %s", n, strings.Join(debian(), ", "))
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", n, err)
		}
		needs, err := f.ImportedLibraries()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", n, err)
		}
		todo = append(todo, needs...)
		mode := fs.FileMode(0o644)
		as := n
		switch {
		case n == name:
			mode = 0o755
			loader, err := interpreter(f)
			if err != nil {
				return nil, err
			}
			todo = append(todo, loader)
		case strings.HasPrefix(n, "ld-linux"):
			mode, as = 0o755, loaderName
		}
		files = append(files, pack.File{Name: path.Join("lib/nft", as), Mode: mode, Data: data})
	}
	return files, nil
}

// interpreter is the base name of the loader that an executable asks for.
func interpreter(f *elf.File) (string, error) {
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return "", errors.New("nft names no loader")
	}
	b := make([]byte, f.Progs[i].Filesz)
	if _, err := f.Progs[i].ReadAt(b, 0); err != nil {
		return "", fmt.Errorf("read nft's loader name: %w", err)
	}
	return path.Base(string(bytes.TrimRight(b, "\x00"))), nil
}
