// Command knarr-bundle builds the archive of executables that Knarr carries:
// runc, containerd's shim, CNI plugins, nft and the pause image. With -tool it
// builds a program that lies beside Knarr instead: crictl.
//
// It needs Go, a C compiler with libseccomp's static library, zstd and
// Debian's apt-get and dpkg-deb; scripts/deps.sh installs what is missing.
// It works from any module:
//
//	go run github.com/knarr-dev/knarr/cmd/knarr-bundle -o bundle.tar.zst
//
// With -arch it builds for another machine. That needs the cross compiler and
// qemu's emulator (`scripts/deps.sh cross`), and package lists are fetched.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
	"github.com/knarr-dev/knarr/pkg/bundle/pack"
)

// sources is this program itself: part of the key by which a finished archive
// is known to be up to date.
//
//go:embed *.go c
var sources embed.FS

func main() {
	out := flag.String("o", filepath.Join("build", "bundle", "bundle.tar.zst"), "archive to write")
	force := flag.Bool("force", false, "build even if the archive is up to date")
	arch := flag.String("arch", runtime.GOARCH, "processor to build for, as Go calls it")
	list := flag.Bool("list", false, "print what the archive holds and end")
	tool := flag.String("tool", "", "build this program in place of the archive: crictl")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return build(ctx, job{*out, *arch, *force}, packArchive) }
	if *tool != "" {
		run = func() error { return build(ctx, job{*out, *arch, *force}, toolBuilder(*tool)) }
	}
	if *list {
		run = func() error {
			data, err := os.ReadFile(*out)
			if err != nil {
				return err
			}
			return show(data)
		}
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "knarr-bundle:", err)
		os.Exit(1)
	}
}

// job is what to write where, for which processor.
type job struct {
	out, arch string
	force     bool // also if it is up to date
}

// builder makes a file's contents, in a folder to work in.
type builder func(ctx context.Context, work string, t target) (pack.File, error)

// build writes a file unless the one in place was made from the same inputs.
func build(ctx context.Context, j job, make builder) error {
	t, err := targetOf(j.arch)
	if err != nil {
		return err
	}
	key, err := inputs(t)
	if err != nil {
		return err
	}
	keyFile := j.out + ".key"
	if have, err := os.ReadFile(keyFile); err == nil && string(have) == key && !j.force {
		if _, err := os.Stat(j.out); err == nil {
			return nil
		}
	}
	work, err := os.MkdirTemp("", "knarr-bundle-")
	if err != nil {
		return fmt.Errorf("make a folder to build in: %w", err)
	}
	defer os.RemoveAll(work)
	f, err := make(ctx, work, t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(j.out), 0o755); err != nil {
		return err
	}
	// The key goes first and comes last: a build cut off between the two
	// leaves no file that claims to be current.
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(j.out+".new", f.Data, f.Mode); err != nil {
		return err
	}
	if err := os.Rename(j.out+".new", j.out); err != nil {
		return err
	}
	return os.WriteFile(keyFile, []byte(key), 0o644)
}

// toolBuilder builds one of the tools.
func toolBuilder(name string) builder {
	return func(ctx context.Context, work string, t target) (pack.File, error) {
		for _, p := range tools() {
			if path.Base(p.packages[0]) != name {
				continue
			}
			fmt.Fprintf(os.Stderr, "building %s %s\n", p.module, p.version)
			files, err := buildProgram(ctx, work, "", t, p, &bytes.Buffer{})
			if err != nil {
				return pack.File{}, fmt.Errorf("build %s %s: %w", p.module, p.version, err)
			}
			return files[0], nil
		}
		return pack.File{}, fmt.Errorf("no tool is called %s", name)
	}
}

// packArchive makes the archive, and prints what is in it.
func packArchive(ctx context.Context, work string, t target) (pack.File, error) {
	// In one group, since they share much of Go's libraries: two, which could be
	// unpacked side by side, take a seventh more of the download.
	all := pack.Group{}
	versions := map[string]string{"go": runtime.Version()}
	var licenses, packageLicenses bytes.Buffer
	fmt.Fprintln(os.Stderr, "fetching nft")
	root, version, err := fetchPackages(ctx, work, t, &packageLicenses)
	if err != nil {
		return pack.File{}, fmt.Errorf("fetch Debian's packages: %w", err)
	}
	versions["nftables"] = version
	nft, err := takeNFT(root)
	if err != nil {
		return pack.File{}, fmt.Errorf("take nft from Debian's packages: %w", err)
	}
	for _, p := range programs() {
		fmt.Fprintf(os.Stderr, "building %s %s\n", p.module, p.version)
		files, err := buildProgram(ctx, work, root.Dir, t, p, &licenses)
		if err != nil {
			return pack.File{}, fmt.Errorf("build %s %s: %w", p.module, p.version, err)
		}
		all.Files = append(all.Files, files...)
		versions[p.module] = p.version
	}
	licenses.Write(packageLicenses.Bytes())
	launcher, err := compileC(ctx, work, "nft", t)
	if err != nil {
		return pack.File{}, err
	}
	protocols, err := compileC(ctx, work, "protocols", t, "-shared", "-fPIC")
	if err != nil {
		return pack.File{}, err
	}
	pause, err := buildPause(ctx, work, t)
	if err != nil {
		return pack.File{}, err
	}
	all.Files = append(all.Files, nft...)
	all.Files = append(all.Files,
		pack.File{Name: "bin/nft", Mode: 0o755, Data: launcher},
		pack.File{Name: "lib/nft/protocols.so", Mode: 0o644, Data: protocols},
		pack.File{Name: "images/pause.tar", Mode: 0o644, Data: pause})
	texts := pack.Group{Lazy: true, Files: []pack.File{{Name: "doc/LICENSES", Mode: 0o644, Data: licenses.Bytes()}}}

	fmt.Fprintln(os.Stderr, "packing")
	var archive bytes.Buffer
	if _, err := pack.Write(ctx, &archive, versions, []pack.Group{all, texts}, pack.Zstd); err != nil {
		return pack.File{}, err
	}
	return pack.File{Mode: 0o644, Data: archive.Bytes()}, show(archive.Bytes())
}

// inputs is a digest of all that decides the archive's contents, save the
// versions of Debian's packages, which only a look at the mirror would tell.
func inputs(t target) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, bundle.Format, runtime.Version(), t.arch)
	err := fs.WalkDir(sources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") {
			return err
		}
		b, err := sources.ReadFile(name)
		fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
		return err
	})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n", nil
}

// show prints each file's size and each group's, packed and unpacked.
func show(data []byte) error {
	a, err := bundle.Open(data)
	if err != nil {
		return err
	}
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	for _, g := range a.Index().Groups {
		how := "at start"
		if g.Lazy {
			how = "on demand"
		}
		for _, f := range g.Files {
			fmt.Printf("  %8.3f MB  %s\n", mb(f.Size), f.Name)
		}
		fmt.Printf("%8.3f MB unpacked, %.3f MB packed (%.0f %% of the archive), unpacked %s\n\n",
			mb(g.Size), mb(g.Length), 100*float64(g.Length)/float64(len(data)), how)
	}
	fmt.Printf("in all %.3f MB, contents %s\n", mb(int64(len(data))), a.ID())
	return nil
}

// buildPause makes the image that every pod's sandbox runs.
func buildPause(ctx context.Context, work string, t target) ([]byte, error) {
	bin, err := compileC(ctx, work, "pause", t)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	err = ocitar.Write(&buf, ocitar.Image{
		Name: pauseImage, Arch: t.arch, Entrypoint: []string{"/pause"},
		Files: []ocitar.File{{Name: "pause", Mode: 0o755, Data: bin}},
	})
	return buf.Bytes(), err
}

// compileC builds one of our small C programs, which use no C library, or with
// other flags a library.
func compileC(ctx context.Context, work, name string, t target, flags ...string) ([]byte, error) {
	if flags == nil {
		flags = []string{"-static", "-fno-pie", "-no-pie", "-Wl,-z,noseparate-code"}
	}
	for _, f := range []string{name + ".c", "sys.h"} {
		src, err := sources.ReadFile("c/" + f)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(work, f), src, 0o600); err != nil {
			return nil, err
		}
	}
	out := filepath.Join(work, name+".bin")
	args := slices.Concat([]string{"-Os", "-nostdlib", "-nostartfiles", "-ffreestanding",
		"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns",
		"-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none,-z,noexecstack", "-s", "-o", out, name + ".c"}, flags, t.cflags)
	_, err := command(ctx, work, nil, t.compiler(), args...)
	if err != nil {
		return nil, fmt.Errorf("compile %s.c: %w", name, err)
	}
	return os.ReadFile(out)
}

// command runs a tool and returns what it printed. Its complaint is part of
// the error.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
