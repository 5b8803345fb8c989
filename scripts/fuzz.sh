#!/bin/sh
# fuzz.sh [TIME]: fuzzes each parser of what strangers send, a minute or TIME each.
set -eu

time=${1-1m}
grep -rl --include='*_test.go' '^func Fuzz' pkg | sort | while read -r file; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$file" | while read -r name; do
		echo "$name in $(dirname "$file")"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "./$(dirname "$file")" </dev/null || exit 1
	done || exit 1
done
