#!/bin/sh
# suites.sh [NAME...] runs test suites of others, unchanged and from their Go
# modules, against Knarr in place of what envtest downloads: controller-runtime's
# own of pkg/client and pkg/builder, and that of an operator, KubeRay. Each has a
# module of its own below tests/suites, so that nobody who imports Knarr has what
# they need in his module graph. Cold, they compile for minutes.
#
# What fails on upstream's kube-apiserver and etcd of the same version too, by the file
# fails-on-upstream of a suite, may fail here, and must: that of KubeRay v1.5 writes
# a finished Job as API servers refuse it by now.
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
	expected=tests/suites/$name/fails-on-upstream
	# shellcheck disable=SC2086 # one word for each package
	if (cd "tests/suites/$name" && go test -count=1 -timeout 30m $packages) >"$assets/log" 2>&1; then
		grep '^ok' "$assets/log"
		[ ! -f "$expected" ] || {
			echo "suites.sh: of $name nothing fails any more: remove $expected" >&2
			exit 1
		}
		continue
	fi
	# Ginkgo's summary names each failure's place in a line of its own.
	failed=$(sed 's/\x1b\[[0-9;]*m//g' "$assets/log" | sed -n '/Summarizing [0-9]* Failure/,$s|.*/\([a-z_]*_test\.go:[0-9]*\)$|\1|p' | LC_ALL=C sort -u)
	if [ ! -f "$expected" ] || [ "$failed" != "$(cat "$expected")" ]; then
		cat "$assets/log"
		exit 1
	fi
	echo "$name: $(sed 's/\x1b\[[0-9;]*m//g' "$assets/log" | grep -o '[0-9]* Passed'), and as on upstream failed:" "$failed"
done
