# Builds the Debian guest's file tree and its ext4 image: goes on behind guest/debian/src/recipe.sh.
# What it gets, by environment, besides:
#   WORK      has sources.list.d/, files/ (copied over the tree), debs/ (kernels of this release),
#             newer/ (kernels of a newer release), offline (package names)
#   IMAGE     the image to make;  SIZE  its size for mkfs.ext4;  LABEL  the file system's label
#   BOOT      folder that gets a copy of each kernel and initrd
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date +%s)}

echo "base system"
rm -rf "$TREE"
make_base

echo "apt sources"
cp -r "$WORK/files/." "$TREE/"
upgrade_from "$WORK/sources.list.d/"*

echo "kernels"
mkdir -p "$TREE/debs"
cp "$WORK/debs/"*.deb "$TREE/debs/"
in_tree sh -c 'apt-get -q -y --no-install-recommends install /debs/*.deb'
rm -rf "$TREE/debs"
for deb in "$WORK/newer/"*.deb; do
    [ -e "$deb" ] || continue
    # A newer release's kernel needs newer packages by its dependencies' letter only: unpack it, and
    # give it what its installation scripts would: module dependencies and an initrd.
    rm -rf "$WORK/unpacked"
    dpkg-deb -x "$deb" "$WORK/unpacked"
    version=$(cd "$WORK/unpacked/boot" && ls vmlinuz-*)
    version=${version#vmlinuz-}
    cp -a "$WORK/unpacked/boot/." "$TREE/boot/"
    modules=$WORK/unpacked/usr/lib/modules
    [ -d "$modules" ] || modules=$WORK/unpacked/lib/modules
    cp -a "$modules/$version" "$TREE/usr/lib/modules/"
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
: >"$TREE/etc/machine-id"
rm -f "$TREE/var/lib/dbus/machine-id"
leave_tree
ln -s ../run/systemd/resolve/stub-resolv.conf "$TREE/etc/resolv.conf"

echo "kernels and initrds beside the image"
rm -rf "$BOOT.new"
mkdir -p "$BOOT.new"
cp "$TREE/boot/"vmlinuz-* "$TREE/boot/"initrd.img-* "$BOOT.new/"

echo "ext4 image"
rm -f "$IMAGE.new"
mkfs.ext4 -q -L "$LABEL" -m 1 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$TREE" "$IMAGE.new" "$SIZE"
rm -rf "$BOOT"
mv "$BOOT.new" "$BOOT"
mv "$IMAGE.new" "$IMAGE"
rm -rf "$TREE"
