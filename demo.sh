#!/usr/bin/env bash
# atomic4 in two minutes, on a real image and the real kernel: format, preallocate, write atomically,
# kill a write half-way, see the kernel refuse the volume, recover, mount, compare every byte.
# On 4 KiB and on 1 KiB blocks. Needs root and Debian 12; installs what is missing and builds first.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

[ "$(id -u)" = 0 ] || { echo "demo.sh mounts an image, so it needs root" >&2; exit 1; }

echo "# Installing what is missing and building"
packaging/debian-packages.sh
cmake --preset release >/dev/null
cmake --build --preset release --target atomic4ctl mkfs.atomic4 -- --quiet
PATH=$PWD/build/release/bin:$PATH

work=$(mktemp -d)
cleanup() {
    mountpoint -q "$work/mnt" && umount "$work/mnt"
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
mkdir mnt

say() { printf '\n# %s\n' "$*"; }
show() {
    printf '$ %s\n' "$*"
    "$@" 2>&1 | sed "s|$work/||g"
}
# The same for commands that have to fail.
show_refused() {
    printf '$ %s\n' "$*"
    if "$@" 2>&1 | sed "s|$work/||g"; then
        echo "demo: this should have been refused" >&2
        exit 1
    fi
}

demo() {
    local block=$1
    say "$block-byte blocks: format an image: stock mke2fs, then the gate bit and the redo log"
    show mkfs.atomic4 -q -b "$block" vol.img 200M

    say "a file of 160 MiB in 16 KiB units, each aligned on the device"
    show atomic4ctl -d vol.img prealloc /db --size 160M --unit 16K
    show atomic4ctl -d vol.img map /db

    say "write 128 KiB atomically, and read them back"
    head -c 128K /dev/urandom >old
    # An aligned range in which one of the file's runs on the device ends: it can be torn.
    local json runs device boundary offset first second
    json=$(atomic4ctl --json -d vol.img map /db)
    runs=$(grep -o '"\(device_offset\|length\)": [0-9]*' <<<"$json" | tr -dc '0-9\n')
    read -r -d '' device boundary _ <<<"$runs" || true
    offset=$((boundary / 131072 * 131072))
    first=$((boundary - offset)) # so many bytes of the range lie in the first run
    show atomic4ctl -d vol.img write /db --offset $offset --from old
    atomic4ctl -d vol.img read /db --offset $offset --length 128K | cmp - old
    echo "the same bytes come back"

    say "the rules are strict: half a unit off is refused, nothing is written"
    show_refused atomic4ctl -d vol.img write /db --offset $((offset + 512)) --from old

    say "now kill -9 a write of new bytes when one of its two runs is on the device, the other not"
    head -c 128K /dev/urandom >new
    # The third pwrite is the second placement: the first sets the needs-replay bit.
    printf '$ atomic4ctl -d vol.img write /db --offset %s --from new   # killed half-way\n' $offset
    # The shell would report the killed job; the demo has said it already.
    {
        strace -qq -o trace -e trace=pwrite64 -e inject=pwrite64:signal=KILL:when=3 \
            atomic4ctl -d vol.img write /db --offset $offset --from new || true
    } 2>/dev/null
    cmp -n $first -i $((device + offset)):0 vol.img new
    atomic4ctl --json -d vol.img map /db >map.json
    second=$(grep -o '"device_offset": [0-9]*' map.json | sed -n 2p | tr -dc 0-9)
    cmp -n $((131072 - first)) -i "$second:$first" vol.img old
    echo "torn, on the raw image: $first bytes are new, $((131072 - first)) are old"
    show atomic4ctl info vol.img

    say "the volume says that it needs replay, so nobody can mount it, or read torn bytes, meanwhile"
    show_refused mount -o loop vol.img mnt
    show_refused atomic4ctl -d vol.img read /db --offset $offset --length 128K

    say "recover: the record was durable, so the whole write happens"
    show atomic4ctl recover vol.img
    show atomic4ctl -d vol.img check

    say "the stock kernel mounts it, finds the new bytes whole, and can write other files"
    show mount -o loop vol.img mnt
    cmp -n 131072 -i $offset:0 mnt/db new
    cp new mnt/another-file
    # The rest of the file was never written: zeros.
    cmp -n $offset mnt/db /dev/zero
    tail -c +$((offset + 131072 + 1)) mnt/db | cmp -n $((160 * 1048576 - offset - 131072)) - /dev/zero
    cmp new mnt/another-file
    umount mnt
    echo "every byte of /db compared: the new 128 KiB are whole, the rest untouched"

    say "and still clean: our check, and stock e2fsck on a copy without the gate bit"
    show atomic4ctl -d vol.img check
    cp --sparse=always vol.img copy.img
    debugfs -w -R "feature -FEATURE_C28" copy.img >/dev/null 2>&1
    show e2fsck -fn copy.img
    rm vol.img copy.img
}

demo 4096
demo 1024
printf '\n# Done. man atomic4 explains the rules, README.md the rest.\n'
