package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle/debian"
	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

// kubeconfig lies on the volume: the root may be read-only.
const kubeconfig = "/var/lib/knarr/kubeconfig.yaml"

// about is what a runtime starts containers of the image by. The Dockerfile says
// the same; a test compares them.
func about() ocitar.Image {
	return ocitar.Image{
		Entrypoint: []string{"/usr/bin/knarr"},
		Cmd:        []string{"server"},
		Env: []string{
			"PATH=/usr/bin",
			// By it programs know that they are in a container, as systemd's
			// container interface has it.
			"container=oci",
			"KNARR_WRITE_KUBECONFIG=" + kubeconfig,
			"KUBECONFIG=" + kubeconfig,
		},
		// An overlay of containers does not lie on another, as the root is; and a
		// read-only root leaves no other place for what pods write.
		Volumes:    []string{"/etc/cni", "/var/lib/cni", "/var/lib/knarr", "/var/lib/kubelet", "/var/log"},
		StopSignal: "SIGTERM",
	}
}

// packages have what a node runs besides Knarr: the kubelet mounts volumes by
// mount(8), whose options busybox has not all.
func packages() []string {
	return []string{"mount", "libmount1", "libblkid1", "libselinux1", "libpcre2-8-0", "libc6", "ca-certificates"}
}

// contents are the image's files. crictl may be empty.
func contents(ctx context.Context, work, goarch, knarr, crictl string) ([]ocitar.File, error) {
	arch, err := debian.ArchOf(goarch)
	if err != nil {
		return nil, err
	}
	root, err := debian.Unpack(ctx, work, arch, packages()...)
	if err != nil {
		return nil, fmt.Errorf("fetch Debian's packages: %w", err)
	}
	files := []ocitar.File{
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		// Shown as the node's OS.
		{Name: "etc/os-release", Mode: 0o644, Data: []byte("ID=knarr\nNAME=Knarr\nPRETTY_NAME=\"Knarr container\"\n")},
		{Name: "root", Mode: fs.ModeDir | 0o700},
		{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	for _, dir := range append([]string{"/dev", "/etc/knarr", "/proc", "/run", "/sys", "/var/tmp"}, about().Volumes...) {
		files = append(files, ocitar.File{Name: strings.TrimPrefix(dir, "/"), Mode: fs.ModeDir | 0o755})
	}
	files = append(files, ocitar.File{Name: "var/run", Link: "../run"}, ocitar.File{Name: "bin", Link: "usr/bin"}, ocitar.File{Name: "sbin", Link: "usr/bin"})
	authorities, err := root.Glob("usr/share/ca-certificates/mozilla/*.crt")
	if err != nil {
		return nil, err
	}
	files = append(files, ocitar.File{Name: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Data: slices.Concat(authorities...)})
	for _, p := range packages() {
		licence, err := root.Copyright(p)
		if err != nil {
			return nil, err
		}
		files = append(files, ocitar.File{Name: path.Join("usr/share/doc", p, "copyright"), Mode: 0o644, Data: licence})
	}
	programs := []string{"mount", "umount"}
	objects, err := root.Closure(programs...)
	if err != nil {
		return nil, fmt.Errorf("take mount from Debian's packages: %w", err)
	}
	for _, o := range objects {
		// The loader where programs look for it, and libraries where it does.
		as, mode := path.Join("lib", arch.Folder, o.Name), fs.FileMode(0o644)
		switch {
		case o.Loader != "":
			as, mode = strings.TrimPrefix(o.Loader, "/"), 0o755
		case slices.Contains(programs, o.Name):
			as, mode = path.Join("usr/bin", o.Name), 0o755
		}
		files = append(files, ocitar.File{Name: as, Mode: mode, Data: o.Data})
	}
	links := []string{"ctr", "helm", "kubectl"}
	if crictl != "" {
		data, err := os.ReadFile(crictl)
		if err != nil {
			return nil, err
		}
		files = append(files, ocitar.File{Name: "usr/bin/knarr-crictl", Mode: 0o755, Data: data})
		links = append(links, "crictl")
	}
	data, err := os.ReadFile(knarr)
	if err != nil {
		return nil, err
	}
	files = append(files, ocitar.File{Name: "usr/bin/knarr", Mode: 0o755, Data: data})
	for _, l := range links {
		files = append(files, ocitar.File{Name: "usr/bin/" + l, Link: "knarr"})
	}
	return files, nil
}
