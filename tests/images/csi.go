package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

// csiModule is the module whose tools are the sidecars of CSI drivers. It is one
// of its own, so that nobody who imports Knarr has them in his module graph.
const csiModule = "tests/images/csi"

// csiManifests are what the sidecars' authors give to kubectl, by the module that
// has it, in the order in which it is applied.
func csiManifests() [][2]string {
	const org, kubernetes = "github.com/kubernetes-csi/", "deploy/kubernetes/"
	return [][2]string{
		{org + "external-snapshotter/client/", "config/crd/snapshot.storage.k8s.io_*.yaml"},
		{org + "external-provisioner/", kubernetes + "rbac.yaml"},
		{org + "external-attacher/", kubernetes + "rbac.yaml"},
		{org + "external-resizer/", kubernetes + "rbac.yaml"},
		{org + "external-snapshotter/", kubernetes + "csi-snapshotter/rbac-csi-snapshotter.yaml"},
		{org + "external-snapshotter/", kubernetes + "snapshot-controller/rbac-snapshot-controller.yaml"},
		{org + "external-snapshotter/", kubernetes + "snapshot-controller/setup-snapshot-controller.yaml"},
	}
}

// imageRef finds the images that manifests name; they become ours, of the
// version that the module has.
var imageRef = regexp.MustCompile(`image:\s*\S+/([a-z-]+):\S+`)

// buildCSI makes knarr.dev/NAME:1 of each sidecar and of our csidriver, and one
// file of all manifests. It does nothing if nothing has changed since the last
// time: linking takes half a minute.
func buildCSI(ctx context.Context, out string) error {
	busybox, err := fetchBusybox(ctx, out)
	if err != nil {
		return fmt.Errorf("take busybox from Debian: %w", err)
	}
	out = filepath.Join(out, "csi")
	stamp, err := csiStamp()
	if err != nil {
		return err
	}
	stampFile := filepath.Join(out, "stamp")
	if old, err := os.ReadFile(stampFile); err == nil && string(old) == stamp {
		return nil
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	bin := filepath.Join(out, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	manifests, err := readCSIManifests(ctx)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(out, "manifests.yaml"), manifests); err != nil {
		return err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	for dir, what := range map[string]string{csiModule: "tool", ".": "./tests/images/csidriver"} {
		if err := run(ctx, dir, nil, "go", "build", "-ldflags=-s -w", "-o", bin+"/", what); err != nil {
			return err
		}
	}
	programs, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	for _, p := range programs {
		if err := writeCSIImage(filepath.Join(out, p.Name()+".tar"), filepath.Join(bin, p.Name()), busybox); err != nil {
			return fmt.Errorf("image of %s: %w", p.Name(), err)
		}
	}
	if err := os.RemoveAll(bin); err != nil {
		return err
	}
	return replace(stampFile, []byte(stamp))
}

// csiStamp changes with everything that the images are made of.
func csiStamp() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	files := []string{csiModule + "/go.mod", csiModule + "/go.sum", csiModule + ".go", "go.mod"}
	sources, err := filepath.Glob("tests/images/csidriver/*.go")
	if err != nil {
		return "", err
	}
	for _, file := range append(files, sources...) {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func readCSIManifests(ctx context.Context) ([]byte, error) {
	list := exec.CommandContext(ctx, "go", "list", "-m", "all")
	list.Dir = csiModule
	modules, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list modules of %s: %w", csiModule, err)
	}
	var all [][]byte
	for _, m := range csiManifests() {
		path := modulePath(string(modules), m[0])
		if path == "" {
			return nil, fmt.Errorf("%s needs no module %s", csiModule, m[0])
		}
		dir, err := moduleDir(ctx, path)
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(dir, m[1]))
		if err == nil && len(files) == 0 {
			err = errors.New("there is none")
		}
		if err != nil {
			return nil, fmt.Errorf("find %s of %s: %w", m[1], m[0], err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			all = append(all, bytes.TrimPrefix(bytes.TrimSpace(data), []byte("---\n")))
		}
	}
	text := append(bytes.Join(all, []byte("\n---\n")), '\n')
	return imageRef.ReplaceAll(text, []byte("image: knarr.dev/$1:1")), nil
}

// modulePath is a path, or that with a major version, of which there is a module.
func modulePath(list, path string) string {
	for line := range strings.Lines(list) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		major, ok := strings.CutPrefix(name, strings.TrimSuffix(path, "/"))
		if ok && (major == "" || strings.HasPrefix(major, "/v") && strings.Count(major, "/") == 1) {
			return name
		}
	}
	return ""
}

// moduleDir is where a module's files are. They are fetched if nothing that was
// built has needed them yet.
func moduleDir(ctx context.Context, path string) (string, error) {
	fetch := exec.CommandContext(ctx, "go", "mod", "download", "-json", path)
	fetch.Dir = csiModule
	out, err := fetch.Output()
	if err != nil {
		return "", fmt.Errorf("fetch module %s: %w: %s", path, err, out)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("fetch module %s: %w", path, err)
	}
	return m.Dir, nil
}

// writeCSIImage makes an image that runs the program, with the few tools that
// our driver calls.
func writeCSIImage(to, program, busybox string) error {
	entry := "/" + filepath.Base(program)
	files := []ocitar.File{{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}}
	for _, f := range [][2]string{{entry[1:], program}, {"bin/busybox", busybox}} {
		data, err := os.ReadFile(f[1])
		if err != nil {
			return err
		}
		files = append(files, ocitar.File{Name: f[0], Mode: 0o755, Data: data})
	}
	for _, tool := range []string{"sh", "cp", "losetup"} {
		files = append(files, ocitar.File{Name: "bin/" + tool, Link: "busybox"})
	}
	var buf bytes.Buffer
	err := ocitar.Write(&buf, ocitar.Image{
		Name: "knarr.dev" + entry + ":1", Arch: runtime.GOARCH, Files: files,
		Env: []string{"PATH=/bin"}, Entrypoint: []string{entry},
	})
	if err != nil {
		return err
	}
	return replace(to, buf.Bytes())
}
