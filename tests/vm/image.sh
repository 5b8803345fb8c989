#!/bin/sh
# image.sh FOLDER makes the virtual machine's disk, FOLDER/base.raw, and its
# kernel and initrd beside it: Debian 12 with systemd, Podman, what clusters without
# root need, and nothing that needs a network. It runs in a mount namespace of its
# own, so that no mount is left.
set -eu
if [ "${KNARR_IMAGE_MOUNTS-}" != own ]; then
	KNARR_IMAGE_MOUNTS=own exec unshare --mount --propagation private "$0" "$@"
fi
dir=$1
suite=bookworm
root=$dir/rootfs
rm -rf "$root"

# The mirrors that this machine's apt uses.
# shellcheck disable=SC2016 # apt's own variables
mirror() {
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk -v r="$1" '$2 == r { print $1; exit }'
}
main=$(mirror "$suite")
[ -n "$main" ] || {
	echo "image.sh: apt of this machine knows no mirror of Debian's $suite" >&2
	exit 1
}

debootstrap --variant=minbase \
	--include=systemd,systemd-sysv,libpam-systemd,dbus,udev,kmod,procps,iproute2,initramfs-tools,lz4 \
	"$suite" "$root" "$main"
# The machine is thrown away: no write has to be safe, no document is read.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$root/etc/initramfs-tools/conf.d/vm.conf"
printf 'virtio_pci\nvirtio_blk\next4\n' >>"$root/etc/initramfs-tools/modules"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount --rbind /dev "$root/dev"
DEBIAN_FRONTEND=noninteractive chroot "$root" sh -ec '
	apt-get -q update
	apt-get -q -y --no-install-recommends install linux-image-cloud-amd64 podman uidmap dbus-user-session
	apt-get clean
	rm -rf /var/lib/apt/lists/*' </dev/null
umount -l "$root/dev" "$root/sys" "$root/proc"
cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
cp "$root"/boot/initrd.img-* "$dir/initrd"

echo vm >"$root/etc/hostname"
printf '127.0.0.1 localhost vm\n' >"$root/etc/hosts"
# Nobody answers there: the machine has no way out.
rm -f "$root/etc/resolv.conf"
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
mkdir -p "$root/payload"
printf '/dev/vda / ext4 noatime 0 1\n/dev/vdb /payload ext4 ro 0 0\n' >"$root/etc/fstab"
cat >"$root/etc/systemd/network/10-vm.network" <<'END'
[Match]
Driver=virtio_net
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
IPv6AcceptRA=no
END
cat >"$root/etc/systemd/system/agent.service" <<'END'
[Unit]
Description=Agent of the tests
RequiresMountsFor=/payload
StartLimitIntervalSec=0
[Service]
ExecStart=/payload/agent
Restart=always
RestartSec=1
OOMScoreAdjust=-1000
[Install]
WantedBy=multi-user.target
END
chroot "$root" sh -ec '
	passwd -d root >/dev/null
	: >/etc/machine-id
	systemctl -q enable systemd-networkd agent
	systemctl -q mask getty@tty1.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
		dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer'

rm -f "$dir/base.raw.new"
truncate -s 12G "$dir/base.raw.new"
mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$dir/base.raw.new"
rm -rf "$root"
mv "$dir/base.raw.new" "$dir/base.raw"
