#!/usr/bin/env bash
# Compares what importers compile against with an earlier commit: $1, or else the
# last tag. Fails if something was taken away or changed. PACKAGES are those of pkg to
# compare; all of them take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:-$(git describe --tags --abbrev=0 2>/dev/null || true)}
if [ -z "$base" ]; then
	echo 'apidiff: there is no release yet to compare with; name a commit: make apidiff BASE=...'
	exit 0
fi
exp=$(go list -m -f '{{.Version}}' golang.org/x/exp)
packages=${PACKAGES:-cluster knarrtest cli config part component bundle}
work=$(mktemp -d)
trap 'git worktree remove --force "$work/base" 2>/dev/null || true; rm -rf "$work"' EXIT
GOBIN=$work go install "golang.org/x/exp/cmd/apidiff@$exp"
git worktree add --quiet --detach "$work/base" "$base"
# The archive of executables is not in git.
export GOFLAGS=${GOFLAGS//,bundle/}
failed=0
for p in $packages; do
	path=github.com/knarr-dev/knarr/pkg/$p
	if [ ! -d "$work/base/pkg/$p" ]; then
		echo "$path: new"
		continue
	fi
	(cd "$work/base" && "$work/apidiff" -w "$work/$p.export" "$path")
	changes=$("$work/apidiff" -incompatible "$work/$p.export" "$path")
	if [ -n "$changes" ]; then
		printf '%s:\n%s\n' "$path" "$changes"
		failed=1
	fi
done
exit $failed
