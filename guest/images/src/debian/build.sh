#!/bin/sh
# Builds the Debian guest's file tree and its ext4 image.
#
# Runs as root in a mount and process namespace of its own: whatever ends it, its mounts and
# processes end with it. What it gets, by environment:
#   WORK      folder with the input: sources.list.d/, files/ (copied over the tree), debs/ (kernels of
#             this release), newer/ (kernels of a newer release), packages, offline (package names)
#   SUITE     the release;  MIRROR  where debootstrap gets it from
#   IMAGE     the image to make;  SIZE  its size for mkfs.ext4;  LABEL  the file system's label
#   BOOT      folder that gets a copy of each kernel and initrd
set -eu
tree=$WORK/tree
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date +%s)}

# The rest of the machine does not see what is mounted here. In a chroot, whose / need not be a mount, it does: there the
# mounts are taken away at the end, whatever the end is.
if ! mount --make-rprivate / 2>/dev/null; then
    mount --bind "$WORK" "$WORK"
    mount --make-rprivate "$WORK"
    trap 'umount -R "$WORK"' EXIT
fi

in_tree() { chroot "$tree" "$@"; }

echo "base system"
rm -rf "$tree"
debootstrap --variant=minbase --include="$(tr '\n' ',' <"$WORK/packages")" "$SUITE" "$tree" "$MIRROR"
# debootstrap leaves them mounted or not, depending on what it finds.
mountpoint -q "$tree/proc" || mount -t proc proc "$tree/proc"
mountpoint -q "$tree/sys" || mount -t sysfs sysfs "$tree/sys"

# While building: start no services, and skip fsync, as a half-built tree is thrown away anyway.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
echo force-unsafe-io >"$tree/etc/dpkg/dpkg.cfg.d/unsafe-io"

echo "apt sources"
rm -f "$tree/etc/apt/sources.list"
cp -r "$WORK/files/." "$tree/"
cp "$WORK/sources.list.d/"* "$tree/etc/apt/sources.list.d/"
# The resolver's package has put a link there.
rm -f "$tree/etc/resolv.conf"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
[ -z "${PROXY:-}" ] || echo "Acquire::http::Proxy \"$PROXY\";" >"$tree/etc/apt/apt.conf.d/90build-proxy"
in_tree apt-get -q update
in_tree apt-get -q -y --no-install-recommends upgrade

echo "kernels"
mkdir -p "$tree/debs"
cp "$WORK/debs/"*.deb "$tree/debs/"
in_tree sh -c 'apt-get -q -y --no-install-recommends install /debs/*.deb'
rm -rf "$tree/debs"
for deb in "$WORK/newer/"*.deb; do
    [ -e "$deb" ] || continue
    # A newer release's kernel needs newer packages by its dependencies' letter only: unpack it, and
    # give it what its installation scripts would: module dependencies and an initrd.
    rm -rf "$WORK/unpacked"
    dpkg-deb -x "$deb" "$WORK/unpacked"
    version=$(cd "$WORK/unpacked/boot" && ls vmlinuz-*)
    version=${version#vmlinuz-}
    cp -a "$WORK/unpacked/boot/." "$tree/boot/"
    modules=$WORK/unpacked/usr/lib/modules
    [ -d "$modules" ] || modules=$WORK/unpacked/lib/modules
    cp -a "$modules/$version" "$tree/usr/lib/modules/"
    in_tree depmod "$version"
    in_tree update-initramfs -c -k "$version"
    rm -rf "$WORK/unpacked"
done

echo "packages for installing without a network"
in_tree apt-get -q -y --no-install-recommends --download-only install $(cat "$WORK/offline")

echo "settings"
in_tree passwd -d root
in_tree systemctl --quiet mask systemd-firstboot.service
# A rule of udev's starts them where there is an adapter.
in_tree systemctl --quiet disable systemd-networkd.service systemd-resolved.service
: >"$tree/etc/machine-id"
rm -f "$tree/var/lib/dbus/machine-id" "$tree/etc/resolv.conf" "$tree/usr/sbin/policy-rc.d" \
    "$tree/etc/dpkg/dpkg.cfg.d/unsafe-io" "$tree/etc/apt/apt.conf.d/90build-proxy" "$tree"/var/log/*.log
ln -s ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
rm -rf "$tree/tmp/"* "$tree/run/"*

umount "$tree/proc" "$tree/sys"

echo "kernels and initrds beside the image"
rm -rf "$BOOT.new"
mkdir -p "$BOOT.new"
cp "$tree/boot/"vmlinuz-* "$tree/boot/"initrd.img-* "$BOOT.new/"

echo "ext4 image"
rm -f "$IMAGE.new"
mkfs.ext4 -q -L "$LABEL" -m 1 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$IMAGE.new" "$SIZE"
rm -rf "$BOOT"
mv "$BOOT.new" "$BOOT"
mv "$IMAGE.new" "$IMAGE"
rm -rf "$tree"
