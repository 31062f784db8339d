# Makes a Debian of packages, as root in namespaces of its own, whose mounts and processes end with it. What it gets, by environment:
#   WORK      a folder, with debian.sources: apt's sources for the guest
#   TREE      the folder to be
#   SUITE, MIRROR, KEYRING, PACKAGES (with commas)   for debootstrap
#   MORE      packages that come afterwards: the kernel, and what the user wants
#   PROXY     apt's proxy, or nothing
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The rest of the machine does not see what is mounted here. In a chroot, whose / need not be a mount, it would.
if ! mount --make-rprivate / 2>/dev/null; then
    mount --bind "$WORK" "$WORK"
    mount --make-rprivate "$WORK"
    trap 'umount -R "$WORK"' EXIT
fi
in_tree() { chroot "$TREE" "$@"; }

echo "covisor-step: fetching and installing the base of Debian $SUITE"
debootstrap --variant=minbase --force-check-gpg --keyring="$KEYRING" --include="$PACKAGES" "$SUITE" "$TREE" "$MIRROR"
# debootstrap leaves them mounted or not, depending on what it finds.
mountpoint -q "$TREE/proc" || mount -t proc proc "$TREE/proc"
mountpoint -q "$TREE/sys" || mount -t sysfs sysfs "$TREE/sys"

# Meanwhile no service starts, and nothing waits for the disk: half of a guest is none.
printf '#!/bin/sh\nexit 101\n' >"$TREE/usr/sbin/policy-rc.d"
chmod 755 "$TREE/usr/sbin/policy-rc.d"
echo force-unsafe-io >"$TREE/etc/dpkg/dpkg.cfg.d/unsafe-io"
rm -f "$TREE/etc/apt/sources.list" "$TREE/etc/resolv.conf"
cp "$WORK/debian.sources" "$TREE/etc/apt/sources.list.d/"
cp /etc/resolv.conf "$TREE/etc/resolv.conf"
[ -z "$PROXY" ] || echo "Acquire::http::Proxy \"$PROXY\";" >"$TREE/etc/apt/apt.conf.d/90covisor-proxy"

echo "covisor-step: fetching and installing what is newer, and the kernel"
in_tree apt-get -q update
in_tree apt-get -q -y --no-install-recommends upgrade
in_tree apt-get -q -y --no-install-recommends install $MORE
in_tree apt-get clean

rm -f "$TREE/etc/resolv.conf" "$TREE/usr/sbin/policy-rc.d" "$TREE/etc/dpkg/dpkg.cfg.d/unsafe-io" \
    "$TREE/etc/apt/apt.conf.d/90covisor-proxy" "$TREE"/var/log/*.log
rm -rf "$TREE"/var/lib/apt/lists/* "$TREE"/tmp/* "$TREE"/run/*
umount "$TREE/proc" "$TREE/sys"
