#!/bin/sh
# Builds the bundle, if it is not up to date, and lays it where go:embed finds
# it for builds with the tag "bundle". "bundle.sh -tool crictl -o FILE" builds
# that program alone.
set -eu
cd "$(dirname "$0")/.."
# With the tag "bundle" nothing compiles before there is an archive to embed.
GOFLAGS=$(printf %s "${GOFLAGS-}" | sed 's/,bundle\>//')
export GOFLAGS

if [ "${1-}" = -tool ]; then
	exec go run ./cmd/knarr-bundle "$@"
fi
archive=build/bundle/bundle.tar.zst
go run ./cmd/knarr-bundle -o "$archive" "$@"
if ! cmp -s "$archive" pkg/bundle/bundle.tar.zst; then
	cp "$archive" pkg/bundle/bundle.tar.zst.new
	mv pkg/bundle/bundle.tar.zst.new pkg/bundle/bundle.tar.zst
fi
