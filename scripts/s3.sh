#!/bin/sh
# Builds a server of S3 for the tests of backups, in build/s3/: versitygw, from a
# Go module of its own, since nothing else here needs what it is made of. Cold, it
# takes minutes.
set -eu
version=v1.8.0
cd "$(dirname "$0")/.."
mkdir -p build/s3
cd build/s3
if [ -x versitygw ] && [ "$(cat version 2>/dev/null)" = "$version" ]; then
	exit 0
fi
rm -f go.mod go.sum
go mod init s3 2>/dev/null
go get "github.com/versity/versitygw/cmd/versitygw@$version"
# Our tags are none of its own.
GOFLAGS=-trimpath CGO_ENABLED=0 go build -o versitygw github.com/versity/versitygw/cmd/versitygw
echo "$version" >version
