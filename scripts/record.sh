#!/bin/sh
# record.sh FILE NAME COMMAND...: runs a command, and puts its commit, date,
# length and result into NAME's row of the table of long runs in a Markdown file.
# Ends with the command's exit code.
set -u

[ $# -ge 3 ] || { echo "usage: record.sh FILE NAME COMMAND..." >&2; exit 2; }
file=$1 name=$2
shift 2
begin='<!-- long runs: written by scripts/record.sh -->'
grep -qxF "$begin" "$file" || { echo "record.sh: $file has no line '$begin' for its rows to follow" >&2; exit 2; }

# Results of the runs before are no change of what is tested.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD -- . ':!docs' ':!BENCHMARKS.md' 2>/dev/null || commit=$commit-dirty
began=$(date -u +%s)
"$@"
code=$?
took=$(($(date -u +%s) - began))
result=passed
[ $code -eq 0 ] || result="FAILED (exit $code)"

row="| $name | $commit | $(date -u +%F) | $((took / 60))m$((took % 60))s | $result |"
new=$(mktemp "$file.XXXXXX") || exit 2
trap 'rm -f "$new"' EXIT
# A row stays where its first result stood; a new one ends the table.
ROW=$row NAME="| $name |" BEGIN=$begin awk '
	$0 == ENVIRON["BEGIN"] { inside = 1 }
	inside && index($0, ENVIRON["NAME"]) == 1 { print ENVIRON["ROW"]; done = 1; next }
	inside && $0 == "<!-- end of long runs -->" { if (!done) print ENVIRON["ROW"]; inside = 0 }
	{ print }
' "$file" >"$new" || exit 2
chmod 0644 "$new"
mv "$new" "$file" || exit 2
exit $code
