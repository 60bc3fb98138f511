#!/usr/bin/env bash
# atomic4 in a few minutes, on a real image and the real kernel. First unmounted: format, preallocate,
# write atomically, kill a write half-way, see the kernel refuse the volume, recover, mount, compare
# every byte; on 4 KiB and on 1 KiB blocks. A file that the kernel made in pieces is adopted: map before
# and after, also as pictures. Damage by which stock e2fsck moves an atomic file's blocks, and what
# fsck.atomic4 does about it. Then mounted: a storage engine writes through the daemon while others
# read the file, the daemon is killed, started again, and every page is verified. At the end the daemon
# beside what people can have today, on this machine.
#
#   ./demo.sh                 needs root and Debian 12; installs what is missing and builds first
#   ./demo.sh --short BIN     with the programs that were built into BIN, without the 1 KiB blocks and
#                             the comparison: less than a minute, for the tests
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

[ "$(id -u)" = 0 ] || { echo "demo.sh mounts an image, so it needs root" >&2; exit 1; }

short=false
case $# in
    0)
        bin=$PWD/build/release/bin
        echo "# Installing what is missing and building"
        packaging/debian-packages.sh
        cmake --preset release >/dev/null
        cmake --build --preset release --target atomic4ctl mkfs.atomic4 fsck.atomic4 mount.atomic4 \
            umount.atomic4 atomic4d client_pages bench_peers -- --quiet
        ;;
    2)
        [ "$1" = --short ] || { echo "usage: ./demo.sh [--short BIN]" >&2; exit 2; }
        short=true
        bin=$2
        ;;
    *)
        echo "usage: ./demo.sh [--short BIN]" >&2
        exit 2
        ;;
esac
source=$PWD
pictures=$(dirname "$bin")/pictures
PATH=$bin:$PATH

work=$(mktemp -d)
helpers=()
children=()
cleanup() {
    # Some have ended, and some are mounted no more.
    [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
    if mountpoint -q "$work/mnt"; then umount.atomic4 "$work/mnt" || umount "$work/mnt"; fi
    [ ${#helpers[@]} = 0 ] || rm -f "${helpers[@]}"
    rm -rf "$work"
}
trap cleanup EXIT
# mount(8) and umount(8) look for their helpers here. Gone again at the end, if they were not installed.
for helper in mount.atomic4 umount.atomic4; do
    [ -e "/sbin/$helper" ] && continue
    ln -s "$bin/$helper" "/sbin/$helper"
    helpers+=("/sbin/$helper")
done
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

demo_adopt() {
    say "an ext4 on which small files came and went; the kernel puts a new file into the gaps"
    show mkfs.atomic4 -q -b 4096 vol.img 64M
    # Files of five blocks until nothing is left (allocated at once: nodelalloc); then every second goes.
    mount -o loop,nodelalloc vol.img mnt
    yes x | split -b 20K -a 4 - mnt/small. 2>/dev/null || true
    sync -f mnt
    rm mnt/small.*[bdfhjlnprtvxz]
    sync -f mnt
    head -c 320K /dev/urandom >old
    show cp --preserve=timestamps old mnt/old.db
    sync -f mnt
    umount mnt
    show atomic4ctl -d vol.img map --unit 16K --svg map_before.svg /old.db

    say "adopt: aligned units in new places, complete before the file's extents change; the old blocks become free"
    show atomic4ctl -d vol.img adopt --unit 16K /old.db
    show atomic4ctl -d vol.img map --svg map_after.svg /old.db
    show atomic4ctl -d vol.img check
    mkdir -p "$pictures"
    mv map_before.svg map_after.svg "$pictures"
    echo "the pictures of both maps are in ${pictures#"$source"/}"

    say "the same file for the kernel, to the byte; and now it takes atomic writes"
    mount -o loop,ro vol.img mnt
    cmp old mnt/old.db
    [ ! old -nt mnt/old.db ] && [ ! old -ot mnt/old.db ]
    umount mnt
    echo "same bytes, same time of modification"
    head -c 16K /dev/urandom >new
    show atomic4ctl -d vol.img write /old.db --offset 16K --from new
    rm vol.img
}

# Both processes of the daemon: the keeper would start the worker again.
daemon_processes() { pgrep -f "atomic4d .*$work/mnt" || true; }

demo_fsck() {
    say "damage: another file claims blocks of an atomic one, too"
    show mkfs.atomic4 -q -b 4096 vol.img 64M
    show atomic4ctl -d vol.img prealloc /db --size 1M --unit 16K
    head -c 128K /dev/urandom >page
    atomic4ctl -d vol.img write /db --offset 0 --from page >/dev/null
    head -c 12K /dev/urandom >notes
    debugfs -w -R "write notes notes" vol.img >/dev/null 2>&1
    local block
    block=$(atomic4ctl --json -d vol.img map /db | sed -n 's/.*"device_offset": \([0-9]*\).*/\1/p' | head -1)
    # The beginning of its only extent.
    show debugfs -w -R "set_inode_field /notes block[5] $((block / 4096 + 4))" vol.img
    show atomic4ctl -d vol.img map /db

    say "what stock e2fsck makes of that, on a copy: it gives the file with the lower number other blocks, which is /db"
    cp --sparse=always vol.img copy.img
    debugfs -n -w -R "feature -FEATURE_C28" copy.img >/dev/null 2>&1
    { e2fsck -fy copy.img 2>&1 || true; } | sed -n '/^File/,/already reassigned/p'
    atomic4ctl enable copy.img >/dev/null 2>&1
    show atomic4ctl -d copy.img map /db
    rm copy.img

    say "fsck.atomic4, on the volume itself: the other file gets a copy of its own"
    show fsck.atomic4 -fy vol.img || [ $? = 1 ]
    show atomic4ctl -d vol.img map /db
    show fsck.atomic4 -fp vol.img
    atomic4ctl -d vol.img read /db --offset 0 --length 128K | cmp - page
    echo "and /db has its bytes"
    rm vol.img
}

demo_mounted() {
    say "a volume with a file, now mounted: the log is replayed before anybody sees it, and the daemon started"
    show mkfs.atomic4 -q -b 4096 vol.img 400M
    show atomic4ctl -d vol.img prealloc /db --size 128M --unit 16K
    show mount -t atomic4 -o loop vol.img mnt
    show atomic4ctl ping -c 3 mnt
    head -c 16K /dev/urandom >page
    show atomic4ctl write mnt/db --offset 0 --from page
    cmp -n 16384 mnt/db page
    echo "the mounted file has the same bytes"
    local json socket writer reader
    json=$(atomic4ctl --json ping -c 1 mnt)
    socket=$(sed -n 's/.*"socket": "\(.*\)".*/\1/p' <<<"$json")
    # The engine's own pages: versions, from 0.
    head -c 16K /dev/zero | atomic4ctl write mnt/db --offset 0 >/dev/null

    say "a storage engine writes 16 KiB pages, 16 in flight; another program reads the same file, a third copies it"
    client_pages read mnt/db record >reader.out &
    reader=$!
    client_pages write "$socket" mnt/db record >writer.out &
    writer=$!
    children+=("$reader" "$writer")
    for _ in 1 2 3; do
        cat mnt/db >/dev/null
        sleep 1
    done
    show atomic4ctl status mnt/db
    atomic4ctl stats mnt >stats.json

    say "in the middle of it: kill -9 of the daemon"
    # shellcheck disable=SC2046
    kill -9 $(daemon_processes)
    wait "$writer"
    kill "$reader"
    wait "$reader"
    cat writer.out reader.out
    printf '$ atomic4ctl info vol.img | grep "redo log"\n'
    atomic4ctl info vol.img | grep "redo log"

    say "started again, it first replays what its log has; then every page is looked at, in the mounted file"
    show atomic4d mnt
    client_pages verify mnt/db record

    say "what it had counted, shortly before it was killed (latencies in microseconds)"
    sed -n '/"acks"/,/}/p; /"all"/,/}/p; /"groups"/,/}/p' stats.json
    show umount mnt
    show atomic4ctl -d vol.img check
    rm vol.img
}

demo 4096
$short || demo 1024
demo_adopt
demo_fsck
demo_mounted

if ! $short; then
    say "the daemon beside what people can have today: durable writes of 16 KiB on one loop device, in short form"
    "$source/tests/bench/peers/run.sh" --short "$bin"
fi

printf '\n# Done. man atomic4 explains the rules, README.md the rest.\n'
