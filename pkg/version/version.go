// Package version says which Knarr and which Kubernetes this is. Release builds
// stamp the variables at link time; an importing program and `go test` set no
// link flags, so Apply gives Kubernetes' own packages the version as well.
package version

import (
	"runtime"
	"runtime/debug"
	"sync"

	kubeversion "k8s.io/component-base/version"
)

// Kubernetes is the version of the Kubernetes that is built in, as users see it.
const Kubernetes = "v1.36.4+knarr1"

// Stamped by the linker (-X); the zero build says "dev".
var (
	knarr     = "dev"
	commit    = ""
	buildDate = "1970-01-01T00:00:00Z"
)

// Info describes this build.
type Info struct {
	Knarr      string `json:"knarr"`
	Kubernetes string `json:"kubernetes"`
	// Containerd is empty in a program without a node.
	Containerd string `json:"containerd,omitempty"`
	Commit     string `json:"commit,omitempty"`
	BuildDate  string `json:"buildDate"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

// Get tells what this build is made of.
func Get() Info {
	i := Info{
		Knarr:      knarr,
		Kubernetes: Kubernetes,
		Commit:     commit,
		BuildDate:  buildDate,
		Go:         runtime.Version(),
		Platform:   runtime.GOOS + "/" + runtime.GOARCH,
	}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	for _, d := range bi.Deps {
		if d.Path == "github.com/containerd/containerd/v2" {
			i.Containerd = d.Version
		}
	}
	return i
}

// Apply makes every upstream package report the version that is really built
// in. Call it before any of them starts; it does nothing that link flags or a call
// before have already done.
func Apply() error { return apply() }

var apply = sync.OnceValue(func() error {
	if kubeGitVersion != Kubernetes {
		kubeGitVersion, clientGitVersion = Kubernetes, Kubernetes
		kubeGitMajor, clientGitMajor = "1", "1"
		kubeGitMinor, clientGitMinor = "36", "36"
		kubeGitTreeState, clientGitTreeState = "clean", "clean"
		kubeGitCommit, clientGitCommit = commit, commit
		kubeBuildDate, clientBuildDate = buildDate, buildDate
	}
	// The version that Get() answers is a copy taken when the package was initialised.
	return kubeversion.SetDynamicVersion(Kubernetes)
})
