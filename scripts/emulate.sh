#!/bin/sh
# emulate.sh ARCH PROGRAM [ARGUMENT...] runs a program of another processor, and
# the programs of that processor which it runs in turn. The kernel learns of the
# emulator in a user namespace of its own (Linux 6.7), so the machine stays as it
# was; where it cannot, only the program itself is emulated.
set -eu
case $1 in
arm64) emulator=qemu-aarch64-static machine='\xb7\x00' class='\x02' ;;
arm) emulator=qemu-arm-static machine='\x28\x00' class='\x01' ;;
*)
	echo "emulate.sh: no emulator known for $1" >&2
	exit 1
	;;
esac
shift
emulator=$(command -v "$emulator")
# An executable's first bytes: ELF, word size, little endian, …, kind, processor.
magic="\\x7fELF$class\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00$machine"
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
export emulator magic mask
# shellcheck disable=SC2016 # the inner shell's variables
exec unshare --user --map-root-user --mount sh -c '
	mount -t binfmt_misc none /proc/sys/fs/binfmt_misc 2>/dev/null &&
		printf ":knarr:M::%s:%s:%s:F" "$magic" "$mask" "$emulator" >/proc/sys/fs/binfmt_misc/register ||
		exec "$emulator" "$@"
	exec "$@"' sh "$@"
