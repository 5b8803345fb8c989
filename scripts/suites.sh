#!/bin/sh
# suites.sh [NAME...] runs test suites of others, unchanged and from their Go
# modules, against Knarr in place of what envtest downloads: controller-runtime's
# own of pkg/client and pkg/builder, and that of an operator, KubeRay. Each has a
# module of its own below tests/suites, so that nobody who imports Knarr has what
# they need in his module graph. Cold, they compile for minutes.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- controller-runtime kuberay
# These need none of our tags but those with which what they share was compiled.
GOFLAGS=$(printf %s "${GOFLAGS-}" | sed 's/,bundle\>//')
export GOFLAGS
assets=$(mktemp -d)
trap 'rm -rf "$assets"' EXIT
KUBEBUILDER_ASSETS=$(dist/knarr assets "$assets/bin")
export KUBEBUILDER_ASSETS
for name in "$@"; do
	case $name in
	controller-runtime) packages='sigs.k8s.io/controller-runtime/pkg/client sigs.k8s.io/controller-runtime/pkg/builder' ;;
	kuberay) packages='github.com/ray-project/kuberay/ray-operator/controllers/ray' ;;
	*)
		echo "suites.sh: there is no suite $name: say controller-runtime or kuberay" >&2
		exit 1
		;;
	esac
	# shellcheck disable=SC2086 # one word for each package
	(cd "tests/suites/$name" && go test -count=1 -timeout 30m $packages)
done
