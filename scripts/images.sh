#!/bin/sh
# Makes the image archives of the tests in build/images/, if they are not up to
# date. With -csi those of the CSI driver too, which takes minutes when cold.
set -eu
cd "$(dirname "$0")/.."
# With the tag "bundle" nothing compiles before there is an archive to embed.
GOFLAGS=$(printf %s "${GOFLAGS-}" | sed 's/,bundle\>//')
export GOFLAGS

go run ./tests/images -o build/images "$@"
