#!/bin/sh
# Makes the image archives of the tests in build/images/, if they are not up to
# date.
set -eu
cd "$(dirname "$0")/.."

go run ./tests/images -o build/images
