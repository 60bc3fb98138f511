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
    # shellcheck disable=SC2086
    volume sound.img $options
    before=$(runs_of sound.img /db)
    block_size=$(dumpe2fs -h sound.img 2>/dev/null | sed -n 's/^Block size: *//p')
    start=$(jq '.[0].device_offset' <<<"$before")
    for sharers in "low" "high" "low mid high"; do
        for bitmaps in right wrong; do
            copy_image sound.img vol.img
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

# --- many sharers ------------------------------------------------------------------------------------------
for options in "-b 4096" "-b 1024"; do
    # shellcheck disable=SC2086
    volume vol.img $options
    before=$(runs_of vol.img /db)
    block_size=$(dumpe2fs -h vol.img 2>/dev/null | sed -n 's/^Block size: *//p')
    start=$(jq '.[0].device_offset' <<<"$before")
    debugfs -w -f <(for i in $(seq 60); do echo "write plain many$i"; done) vol.img >/dev/null 2>&1
    debugfs -w -f <(for i in $(seq 60); do echo "sif many$i block[5] $((start / block_size + i % 3))"; done) vol.img >/dev/null 2>&1
    for name in low mid high; do debugfs -R "dump $name want_$name" vol.img >/dev/null 2>&1; done
    debugfs -R "rdump / ." vol.img >/dev/null 2>&1
    for i in $(seq 60); do mv "many$i" "want_many$i"; done
    expect_status 1 fsck.atomic4 -fy vol.img
    is "$(grep -c '^#19 /many' "$OUT")" 60
    for i in $(seq 60); do
        debugfs -R "dump many$i is" vol.img >/dev/null 2>&1
        cmp "want_many$i" is
    done
    repaired vol.img "$before"
done

# --- blocks that are bad ---------------------------------------------------------------------------------
# Nothing is moved onto them, although there is room nowhere else.
seq 20000 20600 >bad
truncate -s 24M vol.img
mke2fs -q -t ext4 -b 1024 -m 0 -l bad vol.img
expect_ok atomic4ctl enable vol.img
expect_ok atomic4ctl -d vol.img prealloc /db --size 64K --unit 4K
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from data
free=$(dumpe2fs -h vol.img 2>/dev/null | sed -n 's/^Free blocks: *//p')
head -c $(((free - 60) * 1024)) /dev/zero >rest
debug vol.img "write rest rest"
debug vol.img "ea_set /db trusted.atomic4.unit 262144"
capture fsck.atomic4 -fy vol.img
[ $((STATUS & ~1)) = 0 ] || { show_output && die "exit status $STATUS"; }
for run in $(atomic4ctl --json -d vol.img map /db | jq -r '.runs[] | "\(.device_offset / 1024):\(.length / 1024)"'); do
    start=${run%:*}
    [ "$start" -gt 20600 ] || [ $((start + ${run#*:})) -le 20000 ] || die "it lies on bad blocks: $run"
done
debugfs -R "dump /db is" vol.img >/dev/null 2>&1
cmp data is
expect_ok fsck.atomic4 -fp vol.img

# --- an xattr block among another file's -------------------------------------------------------------------
# sound.img: the atomic files /a and /b and an ordinary one, with a block of xattrs each of /a and /plain.
volume_with_xattrs() {
    local sharer
    rm -f sound.img
    truncate -s 32M sound.img
    expect_ok mkfs.atomic4 -q -b 1024 "$@" sound.img
    expect_ok atomic4ctl -d sound.img prealloc /b --size 64K --unit 16K
    expect_ok atomic4ctl -d sound.img write /b --offset 0 --from data
    expect_ok atomic4ctl -d sound.img prealloc /a --size 64K --unit 16K
    debug sound.img "write plain /plain"
    head -c 300 plain | tr '\n' ' ' >value
    for sharer in /a /plain; do debug sound.img "ea_set -f value $sharer user.large"; done
}
# xattrs_within SHARER DAMAGE: of the atomic file /a, or of an ordinary one, within the atomic file /b, which
# keeps its bytes; the sharer keeps what stock e2fsck would keep. Where there are checksums, that of the block
# is wrong (it counts in the place).
xattrs_within() {
    local sharer=$1 damage=$2 inode before block start
    copy_image sound.img vol.img
    inode=$(inode_of vol.img "$sharer")
    before=$(runs_of vol.img /b)
    block=$(debugfs -R "stat $sharer" vol.img 2>/dev/null | sed -n 's/^File ACL: *\([0-9]*\).*/\1/p')
    [ "${block:-0}" -gt 0 ] || die "$sharer has no block of xattrs"
    start=$(($(jq '.[0].device_offset / 1024' <<<"$before") + 2))
    patch vol.img $((start * 1024)) <(slice vol.img $((block * 1024)) 1024)
    case $damage in
        magic) patch vol.img $((start * 1024)) <(printf 'none') ;;
        references) patch vol.img $((start * 1024 + 4)) <(printf '\x07') ;;
        length) patch vol.img $((start * 1024 + 32 + 8)) <(printf '\xff\xff\xff\x7f') ;;
        hash) patch vol.img $((start * 1024 + 32 + 12)) <(printf 'hash') ;;
        none) ;;
        *) die "no damage: $damage" ;;
    esac
    slice vol.img $(((start - 2) * 1024)) 65536 >data_b
    debug vol.img "sif <$inode> file_acl $start"
    copy_image vol.img stock.img
    clear_gate stock.img
    e2fsck -fy stock.img >/dev/null 2>&1 || true
    expect_status 1 fsck.atomic4 -fy vol.img
    is "$(runs_of vol.img /b)" "$before"
    slice vol.img $(((start - 2) * 1024)) 65536 | cmp - data_b
    # What stock e2fsck keeps of it.
    is "$(debugfs -R "ea_list $sharer" vol.img 2>/dev/null | grep user.large || :)" \
        "$(debugfs -R "ea_list $sharer" stock.img 2>/dev/null | grep user.large || :)"
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}
for options in "-O metadata_csum" "-O ^metadata_csum" "-I 128 -O metadata_csum" "-I 128 -O ^metadata_csum"; do
    # shellcheck disable=SC2086
    volume_with_xattrs $options
    for sharer in /a /plain; do
        for damage in none magic references length hash; do xattrs_within $sharer $damage; done
    done
done

# --- a node of an extent tree among another file's -----------------------------------------------------------------
for damage in none checksum; do
    rm -f vol.img sparse
    truncate -s 32M vol.img
    expect_ok mkfs.atomic4 -q -b 1024 -O metadata_csum vol.img
    expect_ok atomic4ctl -d vol.img prealloc /b --size 64K --unit 16K
    expect_ok atomic4ctl -d vol.img write /b --offset 0 --from data
    for i in 0 2 4 6 8 10; do dd if=plain of=sparse bs=4K seek=$i count=1 conv=notrunc status=none; done
    debug vol.img "write sparse /sparse"
    debugfs -R "dump /sparse is" vol.img >/dev/null 2>&1
    cmp sparse is
    node=$(debugfs -R 'ex /sparse' vol.img 2>/dev/null | sed -n 's,^ *0/ *1 .* \([0-9][0-9]*\)  *[0-9]*$,\1,p')
    [ -n "$node" ] || die "its tree has no level"
    before=$(runs_of vol.img /b)
    start=$(($(jq '.[0].device_offset / 1024' <<<"$before") + 2))
    patch vol.img $((start * 1024)) <(slice vol.img $((node * 1024)) 1024)
    [ $damage = none ] || patch vol.img $((start * 1024 + 1020)) <(printf 'sum')
    slice vol.img $(((start - 2) * 1024)) 65536 >data_b
    debug vol.img "sif /sparse block[4] $start"
    expect_status 1 fsck.atomic4 -fy vol.img
    is "$(runs_of vol.img /b)" "$before"
    slice vol.img $(((start - 2) * 1024)) 65536 | cmp - data_b
    debugfs -R "dump /sparse is" vol.img >/dev/null 2>&1
    cmp sparse is
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
done

# --- faults in inodes that our own passes don't know -----------------------------------------------------------
rm vol.img
truncate -s 32M vol.img
expect_ok mkfs.atomic4 -q -b 1024 vol.img
for i in 1 2 3 4 5; do expect_ok atomic4ctl -d vol.img prealloc /f$i --size 64K --unit 16K; done
for i in 1 2 3 4 5; do
    before=$(runs_of vol.img /f$i)
    echo "$before" >runs.$i
    debug vol.img "sif /f$i flags 0x00881000"  # as an indexed directory
done
is "$(atomic4ctl -d vol.img ls | grep -c /f)" 5
expect_status 1 fsck.atomic4 -fy vol.img
out_has 'e2fsck was ended: a write of [0-9]+ bytes at [0-9]+ would change block [0-9]+, the inode of /f[0-9] \(inode [0-9]+\)$'
for i in 1 2 3 4 5; do is "$(runs_of vol.img /f$i)" "$(cat runs.$i)"; done
check_clean vol.img
expect_ok fsck.atomic4 -fp vol.img

# --- a map of indirect blocks that makes no sense, and no free block for a copy of it -------------------------
free_blocks() { dumpe2fs -h "$1" 2>/dev/null | sed -n 's/^Free blocks: *//p'; }
volume vol.img -b 4096
for name in low mid high; do cp plain want_$name; done
before=$(runs_of vol.img /db)
debug vol.img "write /dev/null lost"
lost=$(inode_of vol.img lost)
for field in "flags 0" "size 49152" "block[0] 0" "block[1] 0"; do debug vol.img "sif <$lost> $field"; done
debug vol.img "sif <$lost> block[IND] $(jq '.[0].device_offset / 4096' <<<"$before")"
for name in filler more last; do
    left=$(free_blocks vol.img)
    [ "$left" -gt 0 ] || break
    debug vol.img "write /dev/null $name"
    debug vol.img "fallocate $name 0 $((left - 1))"
done
is "$(free_blocks vol.img)" 0
# It says so, and /db is as it was; with space again, all is well.
capture fsck.atomic4 -fy vol.img
case $STATUS in 1 | 5) ;; *) die "exit status $STATUS" ;; esac
out_has "inode $lost: 1 blocks wanted, 0 free"
is "$(runs_of vol.img /db)" "$before"
debug vol.img "rm filler"
capture fsck.atomic4 -fy vol.img
[ "$STATUS" -le 1 ] || die "exit status $STATUS"
repaired vol.img "$before"

# --- an e2fsck that will touch a file, whatever is done about it ---------------------------------------------
rm vol.img
truncate -s 32M vol.img
expect_ok mkfs.atomic4 -q -b 1024 vol.img
expect_ok atomic4ctl -d vol.img prealloc /db --size 64K --unit 16K
before=$(runs_of vol.img /db)
mkdir tools
cat >tools/e2fsck <<END
#!/bin/sh
[ "\$1" != -V ] || exec $(command -v e2fsck) -V
for device; do :; done
dd if=/dev/urandom of="\$device" bs=1024 seek=$(jq '.[0].device_offset / 1024' <<<"$before") count=1 conv=notrunc 2>/dev/null
echo "went on" >>$T/went_on
END
chmod +x tools/e2fsck
copy_image vol.img sound.img
expect_status 4 env PATH="$T/tools:$PATH" fsck.atomic4 -fy vol.img
out_has 'e2fsck was ended: a write of 1024 bytes at [0-9]+ would change block [0-9]+, data of /db \(inode [0-9]+\)$'
out_has 'e2fsck wants to change what is protected, whatever is done about it'
[ ! -e went_on ] || die "it heard of the refusal"
start=$(jq '.[0].device_offset' <<<"$before")
cmp <(slice vol.img "$start" 65536) <(slice sound.img "$start" 65536)
# The next one looks, also without -f.
expect_ok fsck.atomic4 -p vol.img
out_lacks 'clean, '
is "$(runs_of vol.img /db)" "$before"
check_clean vol.img
e2fsck_clean vol.img
