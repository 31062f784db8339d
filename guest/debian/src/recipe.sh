# The part of every recipe by debootstrap, as root in namespaces of its own, whose mounts and processes end with it.
# By environment:
#   WORK      a folder, which is mounted upon where the machine's root is no mount
#   TREE      the folder to be
#   SUITE, MIRROR, KEYRING, PACKAGES (with commas)   for debootstrap
#   PROXY     apt's proxy, or nothing
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The rest of the machine does not see what is mounted here. In a chroot, whose / need not be a mount, it does: there the
# mounts are taken away at the end, whatever the end is.
if ! mount --make-rprivate / 2>/dev/null; then
    mount --bind "$WORK" "$WORK"
    mount --make-rprivate "$WORK"
    trap 'umount -R "$WORK"' EXIT
fi

in_tree() { chroot "$TREE" "$@"; }

# Debian's base, in which no service starts and nothing waits for the disk: half of a guest is none.
make_base() {
    debootstrap --variant=minbase --force-check-gpg --keyring="$KEYRING" --include="$PACKAGES" "$SUITE" "$TREE" "$MIRROR"
    # debootstrap leaves them mounted or not, depending on what it finds.
    mountpoint -q "$TREE/proc" || mount -t proc proc "$TREE/proc"
    mountpoint -q "$TREE/sys" || mount -t sysfs sysfs "$TREE/sys"
    printf '#!/bin/sh\nexit 101\n' >"$TREE/usr/sbin/policy-rc.d"
    chmod 755 "$TREE/usr/sbin/policy-rc.d"
    echo force-unsafe-io >"$TREE/etc/dpkg/dpkg.cfg.d/unsafe-io"
}

# What is newer, from the sources in $@: files as /etc/apt/sources.list.d has them.
upgrade_from() {
    # The resolver's package has put a link there.
    rm -f "$TREE/etc/apt/sources.list" "$TREE/etc/resolv.conf"
    cp "$@" "$TREE/etc/apt/sources.list.d/"
    cp /etc/resolv.conf "$TREE/etc/resolv.conf"
    [ -z "$PROXY" ] || echo "Acquire::http::Proxy \"$PROXY\";" >"$TREE/etc/apt/apt.conf.d/90covisor-proxy"
    in_tree apt-get -q update
    in_tree apt-get -q -y --no-install-recommends upgrade
}

# Takes away what was there for the building only.
leave_tree() {
    rm -f "$TREE/etc/resolv.conf" "$TREE/usr/sbin/policy-rc.d" "$TREE/etc/dpkg/dpkg.cfg.d/unsafe-io" \
        "$TREE/etc/apt/apt.conf.d/90covisor-proxy" "$TREE"/var/log/*.log
    rm -rf "$TREE"/tmp/* "$TREE"/run/*
    umount "$TREE/proc" "$TREE/sys"
}
