#!/bin/sh
# Installs Knarr as a service, or brings an installation up to date:
#
#   curl -sfL "$URL/install.sh" | sh -
#
# It fetches, verifies and unpacks a release, and then calls `knarr install`,
# which does the rest. Until then nothing is changed but a cache folder.
# docs/install.md tells what the variables mean:
#
#   INSTALL_KNARR_VERSION         version; default: that of the channel
#   INSTALL_KNARR_CHANNEL         default: stable
#   INSTALL_KNARR_BASE_URL        where releases are
#   INSTALL_KNARR_ARTIFACTS       folder with a release's files, in place of a URL
#   INSTALL_KNARR_EXEC            what the service runs: server (default) or agent, flags
#   INSTALL_KNARR_NAME            name of the service; default: knarr
#   INSTALL_KNARR_BIN_DIR         default: /usr/local/bin
#   INSTALL_KNARR_DATA_DIR        default: /var/lib/knarr
#   INSTALL_KNARR_CRICTL          true: fetch crictl, too
#   INSTALL_KNARR_SKIP_START      true: do not start the service
#   INSTALL_KNARR_SKIP_ENABLE     true: do not have it started at boot
#   INSTALL_KNARR_SKIP_SIGNATURE  true: trust the checksums without their signature
#   INSTALL_KNARR_DRY_RUN         true: tell what would be done
#   INSTALL_KNARR_PUBLIC_KEY      PEM file of the key that signed, for a release of your own
#   INSTALL_KNARR_ROOT            folder to install into as if it were /
#   KNARR_URL, KNARR_TOKEN        make it an agent of that server's cluster
#   KNARR_*                       settings, kept in the service's environment
set -eu

# Where releases are. No host is settled yet: a release may set it here.
BASE_URL=''
# The public key that releases are signed with. `make release` sets it.
PUBLIC_KEY=''

say() { echo "install.sh: $*"; }
fail() {
	echo "install.sh: $*" >&2
	exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# is NAME VALUE: whether a switch is on. What is neither on nor off is refused.
is() {
	case $2 in
	true | 1 | yes) return 0 ;;
	'' | false | 0 | no) return 1 ;;
	esac
	fail "$1=$2: say true or false"
}

# architecture MACHINE: the name that release files have for what uname -m says.
architecture() {
	case $1 in
	x86_64 | amd64) echo amd64 ;;
	aarch64 | arm64) echo arm64 ;;
	armv7* | armv8l) echo arm ;;
	*) fail "there is no release for machines of kind $1: they are for x86_64, aarch64 and ARMv7" ;;
	esac
}

# sha256 FILE
sha256() {
	if has sha256sum; then
		sha256sum "$1" | cut -d ' ' -f 1
	elif has openssl; then
		openssl dgst -sha256 -r "$1" | cut -d ' ' -f 1
	else
		fail "neither sha256sum nor openssl is here to verify with: install one"
	fi
}

# fetch NAME FILE: a file of the release. A part that is there is gone on with.
fetch() {
	if [ -n "$artifacts" ]; then
		[ -f "$artifacts/$1" ] || fail "there is no $artifacts/$1: it belongs to a release's files"
		cp "$artifacts/$1" "$2"
	elif has curl; then
		curl -fsSL --connect-timeout 20 --retry 3 -C - -o "$2" "$url/$1" || fail "could not fetch $url/$1 (curl said $?): run this again to go on where it ended"
	elif has wget; then
		wget -q -c -O "$2" "$url/$1" || fail "could not fetch $url/$1 (wget said $?): run this again to go on where it ended"
	else
		fail "neither curl nor wget is here to fetch with: install one, or give INSTALL_KNARR_ARTIFACTS"
	fi
}

# listed NAME: its checksum in the verified list, empty if it has none.
listed() { awk -v name="$1" '$2 == name || $2 == "*" name { print $1; exit }' "$cache/sha256sums.txt"; }

# get NAME FILE: a file of the release, verified, in one step.
get() {
	want=$(listed "$1")
	[ -n "$want" ] || fail "$1 is not in the list of checksums of this release"
	# By its checksum in its name, a part is of no other version's file.
	part="$cache/$want.part"
	if ! [ -f "$part" ] || [ "$(sha256 "$part")" != "$want" ]; then
		fetch "$1" "$part"
	fi
	got=$(sha256 "$part")
	if [ "$got" != "$want" ]; then
		rm -f "$part"
		fail "$1 is not what was released: its sha256 is $got, and should be $want. Nothing was changed"
	fi
	mv "$part" "$2"
}

# program NAME FILE: an executable of the release, unpacked and verified.
program() {
	packed=''
	# Another xz, as busybox's, may lack the filter that makes it the smallest.
	if [ -n "$(listed "$1.xz")" ] && xz --version 2>/dev/null | grep -q 'XZ Utils'; then
		packed=xz
	elif [ -n "$(listed "$1.zst")" ] && has zstd; then
		packed=zst
	elif [ -n "$(listed "$1.gz")" ] && has gzip; then
		packed=gz
	elif [ -n "$(listed "$1.zst")" ]; then
		fail "neither zstd nor gzip is here to unpack with: install zstd"
	else
		fail "this release has no $1: is it for this kind of machine?"
	fi
	get "$1.$packed" "$cache/packed.$packed"
	case $packed in
	xz) xz -d -c "$cache/packed.xz" >"$2" ;;
	zst) zstd -q -d -f -o "$2" "$cache/packed.zst" ;;
	gz) gzip -d -c "$cache/packed.gz" >"$2" ;;
	esac
	rm -f "$cache/packed.$packed"
	[ "$(sha256 "$2")" = "$(listed "$1")" ] || fail "$1 is not what was released once it is unpacked. Nothing was changed"
	chmod 755 "$2"
}

# here FILE NAME: whether a file is that of the release.
here() { [ -f "$1" ] && [ "$(sha256 "$1")" = "$(listed "$2")" ]; }

# verify: the list of checksums is what the holder of the key has signed.
verify() {
	if is INSTALL_KNARR_SKIP_SIGNATURE "${INSTALL_KNARR_SKIP_SIGNATURE:-}"; then
		say "warning: the signature is not looked at, as INSTALL_KNARR_SKIP_SIGNATURE says"
		return
	fi
	if [ -n "${INSTALL_KNARR_PUBLIC_KEY:-}" ]; then
		cat "$INSTALL_KNARR_PUBLIC_KEY" >"$cache/release.pub"
	else
		printf '%s\n' "$PUBLIC_KEY" >"$cache/release.pub"
	fi
	[ -n "${INSTALL_KNARR_PUBLIC_KEY:-}$PUBLIC_KEY" ] || fail "this script has no key to verify with: give INSTALL_KNARR_PUBLIC_KEY, or INSTALL_KNARR_SKIP_SIGNATURE=true to trust the checksums alone"
	has openssl || fail "openssl is not here to verify the signature with: install it, or give INSTALL_KNARR_SKIP_SIGNATURE=true to trust the checksums alone"
	fetch sha256sums.txt.sig "$cache/sha256sums.txt.sig"
	openssl dgst -sha256 -verify "$cache/release.pub" -signature "$cache/sha256sums.txt.sig" "$cache/sha256sums.txt" >/dev/null 2>&1 ||
		fail "the list of checksums is not signed by the key of Knarr's releases. Nothing was changed"
}

# find_release sets url to the folder of the release's files.
find_release() {
	url=''
	if [ -n "$artifacts" ]; then
		return
	fi
	base=${INSTALL_KNARR_BASE_URL:-$BASE_URL}
	base=${base%/}
	[ -n "$base" ] || fail "where are releases? Give INSTALL_KNARR_BASE_URL, or INSTALL_KNARR_ARTIFACTS"
	version=${INSTALL_KNARR_VERSION:-}
	if [ -z "$version" ]; then
		url=$base/channels
		rm -f "$cache/channel"
		fetch "${INSTALL_KNARR_CHANNEL:-stable}" "$cache/channel"
		version=$(head -n 1 "$cache/channel")
	fi
	case $version in
	'' | .* | *[!A-Za-z0-9._+-]*) fail "\"$version\" is no version" ;;
	esac
	url=$base/$version
	say "version $version"
}

# open_cache makes the folder in which a download that was cut off is gone on with.
open_cache() {
	if [ "$(id -u)" = 0 ]; then
		cache=/var/cache/knarr-install
	else
		cache=${XDG_CACHE_HOME:-$HOME/.cache}/knarr-install
	fi
	cache=${INSTALL_KNARR_ROOT:-}$cache
	made=''
	[ -d "$(dirname "$cache")" ] || made=$(dirname "$cache")
	mkdir -p "$cache"
	chmod 700 "$cache"
	rm -f "$cache/sha256sums.txt" "$cache/sha256sums.txt.sig"
}

close_cache() {
	rm -rf "$cache"
	if [ -n "$made" ]; then
		rmdir "$made" 2>/dev/null || true
	fi
}

# install_knarr ARGUMENTS: calls the new executable.
install_knarr() {
	if [ "$#" -gt 0 ]; then
		set -- -- "$@"
	fi
	[ -z "${INSTALL_KNARR_NAME:-}" ] || set -- --name "$INSTALL_KNARR_NAME" "$@"
	[ -z "${INSTALL_KNARR_BIN_DIR:-}" ] || set -- --bin-dir "$INSTALL_KNARR_BIN_DIR" "$@"
	[ -z "${INSTALL_KNARR_DATA_DIR:-}" ] || set -- --data-dir "$INSTALL_KNARR_DATA_DIR" "$@"
	[ -z "${INSTALL_KNARR_ROOT:-}" ] || set -- --root "$INSTALL_KNARR_ROOT" "$@"
	! is INSTALL_KNARR_SKIP_START "${INSTALL_KNARR_SKIP_START:-}" || set -- --skip-start "$@"
	! is INSTALL_KNARR_SKIP_ENABLE "${INSTALL_KNARR_SKIP_ENABLE:-}" || set -- --skip-enable "$@"
	! is INSTALL_KNARR_DRY_RUN "${INSTALL_KNARR_DRY_RUN:-}" || set -- --dry-run "$@"
	[ ! -f "$cache/release.pub" ] || set -- --release-key "$cache/release.pub" "$@"
	"$program" install "$@"
}

main() {
	umask 022
	[ "$(uname -s)" = Linux ] || fail "Knarr runs on Linux"
	arch=$(architecture "$(uname -m)")
	artifacts=${INSTALL_KNARR_ARTIFACTS:-}
	dry=no
	! is INSTALL_KNARR_DRY_RUN "${INSTALL_KNARR_DRY_RUN:-}" || dry=yes
	if [ "$(id -u)" != 0 ] && [ "$dry" = no ] && [ -z "${INSTALL_KNARR_ROOT:-}" ]; then
		fail "only root can install a service: pipe this into sudo sh -, or give INSTALL_KNARR_DRY_RUN=true"
	fi
	open_cache
	find_release
	fetch sha256sums.txt "$cache/sha256sums.txt"
	rm -f "$cache/release.pub"
	verify

	program=$cache/knarr
	bin=${INSTALL_KNARR_ROOT:-}${INSTALL_KNARR_BIN_DIR:-/usr/local/bin}
	# crictl is a sixth of the whole. One that is here is kept up to date.
	crictl=no
	if [ -f "$bin/knarr-crictl" ] || is INSTALL_KNARR_CRICTL "${INSTALL_KNARR_CRICTL:-}"; then
		[ -z "$(listed "knarr-crictl-$arch")" ] || crictl=yes
	fi
	if here "$bin/knarr" "knarr-$arch" && { [ "$crictl" = no ] || here "$bin/knarr-crictl" "knarr-crictl-$arch"; }; then
		program=$bin/knarr
		say "this version is here already"
	else
		program "knarr-$arch" "$program"
		[ "$crictl" = no ] || program "knarr-crictl-$arch" "$cache/knarr-crictl"
	fi
	# The words of INSTALL_KNARR_EXEC, then the script's own arguments.
	set -f
	# shellcheck disable=SC2086 # it is to be split
	set -- ${INSTALL_KNARR_EXEC:-} "$@"
	set +f
	install_knarr "$@"
	close_cache
}

# The last line, so that a script that was cut off does nothing.
main "$@"
