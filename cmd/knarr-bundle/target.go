package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/debian"
)

// target is the machine that the archive is for: this one, or one whose
// programs Debian's cross compilers build here.
type target struct {
	arch   string // as Go calls it
	arm    string // GOARM, for the processors that have it
	cflags []string

	debian   debian.Arch
	emulator string // qemu's, which runs programs of other machines here
}

func targets() map[string]target {
	all := map[string]target{}
	for _, t := range []target{
		{arch: "amd64", emulator: "qemu-x86_64-static"},
		{arch: "arm64", emulator: "qemu-aarch64-static"},
		// ARMv7, as Debian's armhf. System calls take their number in r7, which
		// Thumb code may need for its frame pointer.
		{arch: "arm", arm: "7", cflags: []string{"-marm"}, emulator: "qemu-arm-static"},
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
	var err error
	t.debian, err = debian.ArchOf(arch)
	return t, err
}

func (t target) foreign() bool { return t.arch != runtime.GOARCH }

// compiler is the C compiler for the target.
func (t target) compiler() string {
	if t.foreign() {
		return t.debian.Folder + "-gcc"
	}
	return "gcc"
}

// env has Go build for the target. C libraries are those unpacked below root.
func (t target) env(root string) []string {
	env := []string{"GOOS=linux", "GOARCH=" + t.arch, "GOARM=" + t.arm, "CC=" + t.compiler()}
	if !t.foreign() {
		return env
	}
	lib := filepath.Join(root, "usr/lib", t.debian.Folder)
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
