# Makes a Debian of packages: goes on behind guest/debian/src/recipe.sh. What it gets, by environment, besides:
#   WORK      has debian.sources: apt's sources for the guest
#   MORE      packages that come afterwards: the kernel, and what the user wants
echo "covisor-step: fetching and installing the base of Debian $SUITE"
make_base

echo "covisor-step: fetching and installing what is newer, and the kernel"
upgrade_from "$WORK/debian.sources"
in_tree apt-get -q -y --no-install-recommends install $MORE
in_tree apt-get clean

leave_tree
rm -rf "$TREE"/var/lib/apt/lists/*
