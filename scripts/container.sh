#!/bin/sh
# container.sh NAME makes the container images of the executables in dist that are
# built, as dist/knarr-image-ARCH.tar, if they are not up to date.
set -eu
cd "$(dirname "$0")/.."
# With the tag "bundle" nothing compiles before there is an archive to embed.
GOFLAGS=$(printf %s "${GOFLAGS-}" | sed 's/,bundle\>//')
export GOFLAGS

here=$(go env GOHOSTARCH)
go run ./cmd/knarr-image -name "$1" -knarr dist/knarr -crictl dist/knarr-crictl -o "dist/knarr-image-$here.tar"
for arch in arm64 arm; do
	if [ "$arch" != "$here" ] && [ -f "dist/knarr-$arch" ]; then
		go run ./cmd/knarr-image -arch "$arch" -name "$1" -knarr "dist/knarr-$arch" -o "dist/knarr-image-$arch.tar"
	fi
done
