#!/bin/sh
# Installs the Debian packages that building and testing Knarr needs, if any is
# missing. Needs root only then. With "cross", those for building and emulating
# other machines as well; with "vm", those for a virtual machine; with "rules",
# Prometheus' tool that checks alert rules.
set -eu

# Building: the first line. Running a node, and testing one: the others.
packages="
	gcc libc6-dev libseccomp-dev pkg-config zstd xz-utils make git ca-certificates shellcheck
	iproute2 nftables util-linux bsdutils mount e2fsprogs crun
"
case ${1-} in
cross) packages="$packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user-static" ;;
vm) packages="$packages qemu-system-x86 qemu-utils debootstrap debian-archive-keyring" ;;
rules) packages="$packages prometheus" ;;
esac

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: Knarr is built on Debian, from whose packages it takes nft and busybox; there is no apt-get here" >&2
	exit 1
fi
missing=""
for p in $packages; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
	[ "$state" = installed ] || missing="$missing $p"
done
# The bundle and the test images take files from packages as they are fetched,
# installed or not, for which apt needs its lists.
if [ -z "$missing" ] && apt-get download --print-uris busybox-static nftables >/dev/null 2>&1; then
	exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "deps.sh: run this as root once, to fetch apt's package lists and install:${missing:- nothing else}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# A machine that has just started may be installing updates of its own.
apt="apt-get -qq -o DPkg::Lock::Timeout=300"
$apt update
if [ -n "$missing" ]; then
	echo "installing:$missing" >&2
	# shellcheck disable=SC2086 # one word for each package
	$apt install -y --no-install-recommends $missing >/dev/null
fi
