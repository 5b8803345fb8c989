package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// target is the machine that the archive is for: this one, or one whose
// programs Debian's cross compilers build here.
type target struct {
	arch   string // as Go calls it
	arm    string // GOARM, for the processors that have it
	cflags []string

	// What follows counts for other machines than this one.
	debian   string // as Debian calls the processor
	triplet  string // as compilers and folders of libraries call it
	emulator string // qemu's, which runs its programs here
}

func targets() map[string]target {
	all := map[string]target{}
	for _, t := range []target{
		{arch: "amd64", debian: "amd64", triplet: "x86_64-linux-gnu", emulator: "qemu-x86_64-static"},
		{arch: "arm64", debian: "arm64", triplet: "aarch64-linux-gnu", emulator: "qemu-aarch64-static"},
		// ARMv7, as Debian's armhf. System calls take their number in r7, which
		// Thumb code may need for its frame pointer.
		{arch: "arm", arm: "7", cflags: []string{"-marm"}, debian: "armhf", triplet: "arm-linux-gnueabihf", emulator: "qemu-arm-static"},
	} {
		all[t.arch] = t
	}
	return all
}

func targetOf(arch string) (target, error) {
	t, ok := targets()[arch]
	if !ok {
		return t, fmt.Errorf("-arch %s: known are %s", arch, strings.Join(slices.Sorted(maps.Keys(targets())), ", "))
	}
	return t, nil
}

func (t target) foreign() bool { return t.arch != runtime.GOARCH }

// compiler is the C compiler for the target.
func (t target) compiler() string {
	if t.foreign() {
		return t.triplet + "-gcc"
	}
	return "gcc"
}

// env has Go build for the target. C libraries are those unpacked below root.
func (t target) env(root string) []string {
	env := []string{"GOOS=linux", "GOARCH=" + t.arch, "GOARM=" + t.arm, "CC=" + t.compiler()}
	if !t.foreign() {
		return env
	}
	lib := filepath.Join(root, "usr/lib", t.triplet)
	return append(env,
		"PKG_CONFIG_SYSROOT_DIR="+root, "PKG_CONFIG_LIBDIR="+filepath.Join(lib, "pkgconfig"),
		"CGO_CFLAGS=-O2 -I"+filepath.Join(root, "usr/include"), "CGO_LDFLAGS=-L"+lib)
}

// run is the command line that runs a program of the target here.
func (t target) run(program string, args ...string) []string {
	line := append([]string{program}, args...)
	if t.foreign() {
		line = append([]string{t.emulator}, line...)
	}
	return line
}

// libraries are the packages that programs are linked with. Those for this
// machine are installed on it.
func (t target) libraries() []string {
	if t.foreign() {
		return []string{"libseccomp2", "libseccomp-dev"}
	}
	return nil
}

// apt returns the options with which apt-get fetches packages of the target.
// Lists of another processor's packages are kept in work, so that neither apt
// nor dpkg of this machine has to know of it. That some source has none is told
// by stale, and matters only if a package is then missing.
func (t target) apt(ctx context.Context, work string) (options []string, stale, err error) {
	if !t.foreign() {
		return nil, nil, nil
	}
	dir := filepath.Join(work, "apt")
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
		"APT::Architecture=" + t.debian, "APT::Architectures=" + t.debian, "APT::Sandbox::User=root", "Acquire::Languages=none",
		"Dir::State=" + filepath.Join(dir, "state"), "Dir::Cache=" + filepath.Join(dir, "cache"), "Dir::State::status=" + status,
	} {
		options = append(options, "-o", o)
	}
	_, stale = command(ctx, dir, nil, "apt-get", append(slices.Clone(options), "-q", "update")...)
	return options, stale, nil
}
