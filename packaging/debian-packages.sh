#!/bin/sh
# Installs the Debian packages that building (and, with "test", testing) needs and that are missing.
#   packaging/debian-packages.sh [test]
set -eu

packages="g++ cmake ninja-build ccache pkg-config e2fsprogs libext2fs-dev comerr-dev libblkid-dev
          libfmt-dev libspdlog-dev libexpected-dev libcli11-dev nlohmann-json3-dev libisal-dev
          libgtest-dev libgmock-dev liburing-dev libsystemd-dev mount util-linux procps strace
          libfuse3-dev xfsprogs btrfs-progs"
if [ "${1:-}" = test ]; then
    packages="$packages libbenchmark-dev acl attr systemd python3 jq xz-utils fdisk libxml2-utils zsh mandoc clang-19 libclang-rt-19-dev clang-tidy-19 clang-format-19 git"
fi

missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "missing packages; as root: apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# shellcheck disable=SC2086  # a list of words
apt-get install -y -q --no-install-recommends $missing >/dev/null
