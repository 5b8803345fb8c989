package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

// The flags of the main build, so that both share Go's build cache. Upstream
// builds Kubernetes with grpcnotrace too; the other tags change nothing here.
const sharedFlags = "-trimpath -buildvcs=false -tags=netgo,osusergo,sqlite_omit_load_extension,grpcnotrace"

// programs are where the peer's executables are on this machine.
type programs struct {
	dir     string           // holds the ones built here
	bundle  *bundle.Unpacked // holds runc, the shim, the CNI plugins, the pause image
	version string
}

// kubePrograms are built out of our own module graph.
func kubePrograms() []string {
	return []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}
}

// buildPeer builds what is not up to date of the peer's executables.
func buildPeer(ctx context.Context, o options) (*programs, error) {
	root, err := command(ctx, "", nil, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/knarr-dev/knarr")
	if err != nil {
		return nil, fmt.Errorf("build peer: %w", err)
	}
	b := builder{root: root, out: filepath.Join(root, "build", "peer")}
	p, err := b.build(ctx)
	if err != nil {
		return nil, fmt.Errorf("build peer: %w", err)
	}
	data, err := os.ReadFile(o.bundle)
	if err != nil {
		return nil, fmt.Errorf("build peer: %w: scripts/bundle.sh makes it", err)
	}
	archive, err := bundle.Open(data)
	if err != nil {
		return nil, fmt.Errorf("build peer: %w", err)
	}
	p.bundle, err = archive.Unpack(filepath.Join(b.out, "bundle"))
	return p, err
}

type builder struct {
	root string // of our module
	out  string
}

func (b builder) build(ctx context.Context) (*programs, error) {
	version := map[string]string{}
	for _, m := range []string{"k8s.io/kubernetes", "github.com/containerd/containerd/v2", "go.etcd.io/etcd/client/v3"} {
		v, err := command(ctx, b.root, nil, "go", "list", "-m", "-f", "{{.Version}}", m)
		if err != nil {
			return nil, err
		}
		version[m] = v
	}
	kube, containerd, etcd := version["k8s.io/kubernetes"], version["github.com/containerd/containerd/v2"], version["go.etcd.io/etcd/client/v3"]
	bin := filepath.Join(b.out, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	if err := b.buildKube(ctx, bin, kube); err != nil {
		return nil, err
	}
	err := b.buildModule(ctx, "etcd", "go.etcd.io/etcd/server/v3", etcd, "", map[string]string{
		"etcd": "go.etcd.io/etcd/server/v3",
	})
	if err != nil {
		return nil, err
	}
	stamp := "-X github.com/containerd/containerd/v2/version.Version=" + containerd
	err = b.buildModule(ctx, "containerd", "github.com/containerd/containerd/v2", containerd, stamp, map[string]string{
		"containerd": "github.com/containerd/containerd/v2/cmd/containerd",
		"ctr":        "github.com/containerd/containerd/v2/cmd/ctr",
	})
	if err != nil {
		return nil, err
	}
	return &programs{dir: bin, version: fmt.Sprintf("Kubernetes %s, etcd %s, containerd %s, as separate processes", kube, etcd, containerd)}, nil
}

func (b builder) buildKube(ctx context.Context, bin, version string) error {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	ldflags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		ldflags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean",
			pkg, version, parts[0], parts[1])
	}
	var packages []string
	for _, p := range kubePrograms() {
		packages = append(packages, "k8s.io/kubernetes/cmd/"+p)
	}
	return b.buildOurs(ctx, "kubernetes-"+version, bin, ldflags, packages...)
}

// buildOurs builds programs of modules that we have, too: our versions, and with
// them our build cache, but a go.mod and go.sum to which the build may add what
// only these programs import.
func (b builder) buildOurs(ctx context.Context, name, bin, ldflags string, packages ...string) error {
	dir := filepath.Join(b.out, "modules", name)
	for _, d := range []string{dir, bin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(b.root, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	args := []string{"build", "-mod=mod", "-modfile", filepath.Join(dir, "go.mod"), "-ldflags", ldflags, "-o", bin + "/"}
	_, err := command(ctx, b.root, []string{"CGO_ENABLED=1", "GOFLAGS=" + sharedFlags}, "go", append(args, packages...)...)
	return err
}

// coredns is CoreDNS' own program.
type coredns struct{ file, version string }

// buildCoreDNS builds it with all plugins that its authors put into it.
func buildCoreDNS(ctx context.Context) (*coredns, error) {
	const module = "github.com/coredns/coredns"
	root, err := command(ctx, "", nil, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/knarr-dev/knarr")
	if err != nil {
		return nil, fmt.Errorf("build coredns: %w", err)
	}
	version, err := command(ctx, root, nil, "go", "list", "-m", "-f", "{{.Version}}", module)
	if err != nil {
		return nil, fmt.Errorf("build coredns: %w", err)
	}
	b := builder{root: root, out: filepath.Join(root, "build", "peer")}
	bin := filepath.Join(b.out, "bin")
	if err := b.buildOurs(ctx, "coredns-"+version, bin, "-s -w", module); err != nil {
		return nil, fmt.Errorf("build coredns: %w", err)
	}
	return &coredns{file: filepath.Join(bin, "coredns"), version: "CoreDNS " + version + ", for DNS alone"}, nil
}

// buildModule builds packages in a module of their own: these programs get the
// dependencies of their own release, and our go.mod stays free of them.
func (b builder) buildModule(ctx context.Context, name, module, version, ldflags string, packages map[string]string) error {
	dir := filepath.Join(b.out, "modules", name+"-"+version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Kept once it is there: the build completes it and go.sum beside it.
	mod := filepath.Join(dir, "go.mod")
	if _, err := os.Stat(mod); os.IsNotExist(err) {
		text := fmt.Sprintf("module peer\n\ngo %s\n\nrequire %s %s\n", strings.TrimPrefix(runtime.Version(), "go"), module, version)
		if err := os.WriteFile(mod, []byte(text), 0o644); err != nil {
			return err
		}
	}
	env := []string{"CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local"}
	for exe, pkg := range packages {
		_, err := command(ctx, dir, env, "go", "build", "-mod=mod", "-trimpath", "-buildvcs=false", "-tags", "netgo,osusergo",
			"-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", filepath.Join(b.out, "bin", exe), pkg)
		if err != nil {
			return err
		}
	}
	return nil
}

// files are all executables that the peer needs at run time.
func (p *programs) files() ([]string, error) {
	var files []string
	for _, name := range append(kubePrograms(), "etcd", "containerd") {
		files = append(files, filepath.Join(p.dir, name))
	}
	for _, name := range []string{"bin/runc", "bin/containerd-shim-runc-v2", "cni/bridge", "cni/host-local", "cni/loopback", "cni/portmap"} {
		path, err := p.bundle.Path(name)
		if err != nil {
			return nil, err
		}
		files = append(files, path)
	}
	return files, nil
}
