#!/bin/sh
# cross.sh ARCH builds the bundle of another processor's executables, and tells
# Go's compiler to see it where that of this machine lies.
set -eu
cd "$(dirname "$0")/.."
# With the tag "bundle" nothing compiles before there is an archive to embed.
GOFLAGS=$(printf %s "${GOFLAGS-}" | sed 's/,bundle\>//')
export GOFLAGS

dir=$PWD/build/cross/$1
mkdir -p "$dir"
go run ./cmd/knarr-bundle -arch "$1" -o "$dir/bundle.tar.zst"
printf '{"Replace":{"%s":"%s"}}\n' "$PWD/pkg/bundle/bundle.tar.zst" "$dir/bundle.tar.zst" >"$dir/overlay.json"
