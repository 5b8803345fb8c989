package version

import (
	_ "unsafe" // for go:linkname

	_ "k8s.io/client-go/pkg/version"
	_ "k8s.io/component-base/version"
)

// Kubernetes keeps its version in unexported variables that only its own build
// scripts stamp. TestVersionWithoutLinkFlags tells when they move.

//go:linkname kubeGitVersion k8s.io/component-base/version.gitVersion
var kubeGitVersion string

//go:linkname kubeGitMajor k8s.io/component-base/version.gitMajor
var kubeGitMajor string

//go:linkname kubeGitMinor k8s.io/component-base/version.gitMinor
var kubeGitMinor string

//go:linkname kubeGitTreeState k8s.io/component-base/version.gitTreeState
var kubeGitTreeState string

//go:linkname kubeGitCommit k8s.io/component-base/version.gitCommit
var kubeGitCommit string

//go:linkname kubeBuildDate k8s.io/component-base/version.buildDate
var kubeBuildDate string

//go:linkname clientGitVersion k8s.io/client-go/pkg/version.gitVersion
var clientGitVersion string

//go:linkname clientGitMajor k8s.io/client-go/pkg/version.gitMajor
var clientGitMajor string

//go:linkname clientGitMinor k8s.io/client-go/pkg/version.gitMinor
var clientGitMinor string

//go:linkname clientGitTreeState k8s.io/client-go/pkg/version.gitTreeState
var clientGitTreeState string

//go:linkname clientGitCommit k8s.io/client-go/pkg/version.gitCommit
var clientGitCommit string

//go:linkname clientBuildDate k8s.io/client-go/pkg/version.buildDate
var clientBuildDate string
