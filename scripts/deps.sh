#!/bin/sh
# Installs the Debian packages that building and testing Knarr needs, if any is
# missing. Needs root only then.
set -eu

packages="
	gcc libc6-dev libseccomp-dev pkg-config zstd
	iproute2 nftables procps util-linux e2fsprogs curl git ca-certificates
	shellcheck
"

missing=""
for p in $packages; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
	[ "$state" = installed ] || missing="$missing $p"
done
if [ -z "$missing" ]; then
	# The bundle and the test images take files from packages they do not
	# install, for which apt needs its lists.
	apt-cache show busybox-static nftables >/dev/null 2>&1 && exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "deps.sh: run as root: to install are apt package lists,$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [ -n "$missing" ]; then
	echo "installing:$missing" >&2
	# shellcheck disable=SC2086 # one word for each package
	apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
