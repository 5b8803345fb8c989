package main

// program is an executable built from a Go module.
type program struct {
	module, version string
	packages        []string // what to build; each gives one file
	dir             string   // where in the bundle
	cgo             bool
	tags            string
	ldflags         string // beyond those every program gets
}

// programs is the one place that says which versions are in the bundle.
func programs() []program {
	return []program{
		{
			module: "github.com/opencontainers/runc", version: "v1.5.2",
			packages: []string{"."}, dir: "bin",
			// seccomp needs libseccomp, hence cgo. The documentation generator of
			// its command line library is left out.
			cgo: true, tags: "seccomp netgo osusergo urfave_cli_no_docs",
		},
		{
			module: "github.com/containerd/containerd/v2", version: "v2.3.7",
			packages: []string{"cmd/containerd-shim-runc-v2"}, dir: "bin",
			// Shims speak ttrpc; without gRPC each one is smaller in memory.
			tags:    "no_grpc netgo osusergo",
			ldflags: "-X github.com/containerd/containerd/v2/version.Version=v2.3.7",
		},
		{
			module: "github.com/containernetworking/plugins", version: "v1.9.1",
			packages: []string{"plugins/ipam/host-local", "plugins/main/bridge", "plugins/main/loopback", "plugins/meta/portmap"},
			dir:      "cni",
			tags:     "netgo osusergo",
			ldflags:  "-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=v1.9.1",
		},
	}
}

// tools are programs beside Knarr and not in its bundle: crictl alone would make
// the download a sixth larger.
func tools() []program {
	return []program{{
		module: "sigs.k8s.io/cri-tools", version: "v1.36.0",
		packages: []string{"cmd/crictl"},
		tags:     "netgo osusergo",
		ldflags:  "-X sigs.k8s.io/cri-tools/pkg/version.Version=v1.36.0",
	}}
}

// packages lists Debian's packages that nft and all its libraries come from, in the
// version that the building machine's Debian offers. The build fails, and
// says what is missing, if a library is in none of them.
func packages() []string {
	return []string{
		"nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libgmp10", "libxtables12",
		"libedit2", "libbsd0", "libmd0", "libtinfo6", "libc6",
	}
}

const pauseImage = "knarr.dev/pause:1"
