// Command images makes the image archives that the tests run:
//
//	go run ./tests/images -o build/images [-csi]
//
// test.tar is knarr.dev/test:1, Debian's static busybox with our testbox.
// busybox was linked with glibc, whose name look-ups crash in static programs,
// so it gets no names for wget and nslookup: use testbox get and lookup.
//
// With -csi the folder csi gets the images of a CSI driver and its sidecars, and
// their manifests.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

const testImage = "knarr.dev/test:1"

func main() {
	out := flag.String("o", filepath.Join("build", "images"), "folder to write to")
	csi := flag.Bool("csi", false, "make the images of the CSI driver too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := build(ctx, *out)
	if err == nil && *csi {
		err = buildCSI(ctx, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	busybox, err := fetchBusybox(ctx, out)
	if err != nil {
		return fmt.Errorf("take busybox from Debian: %w", err)
	}
	testbox := filepath.Join(out, "testbox")
	if err := run(ctx, "", []string{"CGO_ENABLED=0", "GOFLAGS="}, "go", "build", "-trimpath", "-buildvcs=false", "-tags=netgo,osusergo",
		"-ldflags=-s -w -buildid=", "-o", testbox, "github.com/knarr-dev/knarr/tests/images/testbox"); err != nil {
		return err
	}
	files, err := contents(ctx, busybox, testbox)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	err = ocitar.Write(&buf, ocitar.Image{
		Name: testImage, Arch: runtime.GOARCH, Files: files,
		Env: []string{"PATH=/bin"}, Cmd: []string{"testbox", "sleep"},
	})
	if err != nil {
		return err
	}
	return replace(filepath.Join(out, "test.tar"), buf.Bytes())
}

// contents are the files of the test image.
func contents(ctx context.Context, busybox, testbox string) ([]ocitar.File, error) {
	files := []ocitar.File{
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nsailor:x:1000:1000::/:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\nsailor:x:1000:\ncrew:x:4000:sailor\n")},
		{Name: "root", Mode: fs.ModeDir | 0o700},
		{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	for _, from := range []string{busybox, testbox} {
		name := filepath.Base(from)
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		files = append(files, ocitar.File{Name: "bin/" + name, Mode: 0o755, Data: data})
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("ask busybox for its commands: %w", err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" && name != "wget" && name != "nslookup" {
			files = append(files, ocitar.File{Name: "bin/" + name, Link: "busybox"})
		}
	}
	return files, nil
}

// fetchBusybox returns the path of busybox, which it fetches once.
func fetchBusybox(ctx context.Context, out string) (string, error) {
	kept := filepath.Join(out, "busybox")
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	work, err := os.MkdirTemp("", "knarr-images-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := run(ctx, work, nil, "apt-get", "download", "-q", "busybox-static"); err != nil {
		return "", fmt.Errorf("%w; is there a package list (apt-get update)?", err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get brought %d packages instead of one", len(debs))
	}
	if err := run(ctx, work, nil, "dpkg-deb", "-x", debs[0], "root"); err != nil {
		return "", err
	}
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} { // Debian 12; 13
		if data, err := os.ReadFile(filepath.Join(work, "root", p)); err == nil {
			if err := replace(kept, data); err != nil {
				return "", err
			}
			return kept, os.Chmod(kept, 0o755)
		}
	}
	return "", fmt.Errorf("%s holds no busybox", filepath.Base(debs[0]))
}

// replace writes a file in one step, and not at all if it is so already.
func replace(name string, data []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.WriteFile(name+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func run(ctx context.Context, dir string, env []string, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, bytes.TrimSpace(out))
	}
	return nil
}
