#!/bin/sh
# Lays down in dist/release what install.sh and `knarr upgrade` fetch, from the
# executables in dist that are built: packed executables for each architecture,
# container images (`make image`), an SBOM, install.sh with the key in it, checksums and their signature. All but the
# signature is the same bytes each time.
#
#   RELEASE_KEY      PEM file of an ECDSA P-256 private key. Without it nothing is
#                    signed, and users have to skip the signature.
#   RELEASE_VERSION  default: what git says
#   RELEASE_LEVEL    zstd's level, default 19
#   RELEASE_XZ       xz's preset, default 9e
set -eu
cd "$(dirname "$0")/.."
dist=${DIST:-dist}
out=$dist/release
version=${RELEASE_VERSION:-$(git describe --tags --always --dirty)}
created=${RELEASE_DATE:-$(TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd)}
level=${RELEASE_LEVEL:-19}
xz=${RELEASE_XZ:-9e}

rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
names=''

# pack FILE NAME
pack() {
	[ -f "$1" ] || return 0
	echo "packing $2" >&2
	cp "$1" "$out/$2"
	# One thread and no time in it: the same bytes on every machine.
	zstd -q --single-thread "-$level" -o "$out/$2.zst" "$out/$2"
	gzip -9 -n -c "$out/$2" >"$out/$2.gz"
	# The filter of x86's calls makes this the smallest; without one, as for ARM, it
	# would win little and take a small machine long to unpack.
	case $2 in
	*-amd64) xz -T1 --x86 --lzma2="preset=$xz,dict=32MiB" -c "$out/$2" >"$out/$2.xz" ;;
	esac
	names="$names $2"
}
pack "$dist/knarr" knarr-amd64
pack "$dist/knarr-crictl" knarr-crictl-amd64
pack "$dist/knarr-arm64" knarr-arm64
pack "$dist/knarr-arm" knarr-arm
[ -n "$names" ] || {
	echo "release.sh: there is nothing in $dist: run make build" >&2
	exit 1
}

# What is large in an image is packed already.
for image in "$dist"/knarr-image-*.tar; do
	[ ! -f "$image" ] || cp "$image" "$out/"
done

echo "listing what is in it" >&2
bundle=build/bundle/bundle.tar.zst
[ -f "$bundle" ] || bundle=''
# shellcheck disable=SC2086 # one word for each file
(
	here=$PWD
	cd "$out"
	[ -z "$bundle" ] || set -- -bundle "$here/$bundle"
	"${SBOM:-$here/build/knarr-sbom}" -version "$version" -created "$created" "$@" -o "$out/knarr.spdx.json" $names
)

# The key that the script trusts is that of the signature.
if [ -n "${RELEASE_KEY:-}" ]; then
	openssl ec -in "$RELEASE_KEY" -pubout -out "$out/release.pub" 2>/dev/null
	awk -v key="$(cat "$out/release.pub")" '/^PUBLIC_KEY=/ { print "PUBLIC_KEY='\''" key "'\''"; next } { print }' install.sh >"$out/install.sh"
else
	cp install.sh "$out/install.sh"
fi

cd "$out"
# Checksums of unpacked executables are in the list, too: install.sh tells by them
# what is installed already.
sha256sum -- * | LC_ALL=C sort -k 2 >.sums
mv .sums sha256sums.txt
# shellcheck disable=SC2086 # one word for each file
rm -f $names
if [ -n "${RELEASE_KEY:-}" ]; then
	case $RELEASE_KEY in /*) key=$RELEASE_KEY ;; *) key=$OLDPWD/$RELEASE_KEY ;; esac
	openssl dgst -sha256 -sign "$key" -out sha256sums.txt.sig sha256sums.txt
else
	echo "release.sh: not signed: give RELEASE_KEY" >&2
fi
ls -l >&2
