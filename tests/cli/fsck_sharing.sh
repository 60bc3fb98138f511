# fsck.atomic4 where other inodes claim an atomic file's blocks (F9): the atomic file stays, the
# others get copies.
. "$(dirname "$0")/lib.sh"
need_root
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }
inode_of() { debugfs -R "stat $2" "$1" 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p'; }
# The file's only extent, wherever it was, begins at this block.
put_extent_at() { debug "$1" "sif <$(inode_of "$1" "$2")> block[5] $3"; }
runs_of() { atomic4ctl --json -d "$1" map "$2" | jq -c .runs; }

# volume NAME MKE2FS-OPTIONS…: atomic files /db and (made first, so with a lower inode) /first, and
# ordinary files /low, /mid and /high, one of them with a lower inode than both.
volume() {
    local image=$1
    shift
    rm -f "$image"
    truncate -s 64M "$image"
    expect_ok mkfs.atomic4 -q "$@" "$image"
    local name
    for name in low; do debug "$image" "write plain $name"; done
    expect_ok atomic4ctl -d "$image" prealloc /db --size 1M --unit 16K
    expect_ok atomic4ctl -d "$image" write /db --offset 0 --from data
    for name in mid high; do debug "$image" "write plain $name"; done
}

# Everything as it has to be afterwards; before: the map of /db.
repaired() {
    local image=$1 before=$2
    shift 2
    is "$(runs_of "$image" /db)" "$before"
    expect_ok atomic4ctl -d "$image" read /db --offset 0 --length 64K
    cmp data "$OUT"
    check_clean "$image"
    e2fsck_clean "$image"
    expect_ok fsck.atomic4 -f -p "$image"
    local name
    mkdir -p mnt
    mount -o loop "$image" mnt
    UNDO+=("umount '$T/mnt'")
    for name in low mid high; do cmp "mnt/$name" "want_$name"; done
    cmp <(head -c 64K mnt/db) data
    umount mnt
}

pattern data 64K >data
pattern plain 12K >plain

for options in "-b 4096" "-b 1024" "-b 4096 -O bigalloc -C 16384"; do
    for sharers in "low" "high" "low mid high"; do
        for bitmaps in right wrong; do
            # shellcheck disable=SC2086
            volume vol.img $options
            before=$(runs_of vol.img /db)
            block_size=$(dumpe2fs -h vol.img 2>/dev/null | sed -n 's/^Block size: *//p')
            start=$(jq '.[0].device_offset' <<<"$before")
            for name in $sharers; do put_extent_at vol.img "$name" $((start / block_size)); done
            for name in low mid high; do
                debugfs -R "dump $name want_$name" vol.img >/dev/null 2>&1
            done
            if [ $bitmaps = wrong ]; then
                for i in 0 1 2 40 41; do debug vol.img "freeb $((start / block_size + i))"; done
            fi
            changes_nothing vol.img fsck.atomic4 -fn vol.img
            is "$STATUS" 4
            out_has "claims blocks of an atomic file, too"
            expect_status 4 fsck.atomic4 -fp vol.img
            out_has "RUN fsck MANUALLY"
            expect_status 1 fsck.atomic4 -fy vol.img
            out_has "Give it a copy of its own. yes"
            repaired vol.img "$before"
        done
    done
done
