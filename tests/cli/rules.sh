# The rules of an atomic write on an owned volume (atomic4(7)), with the logged engine and with
# engines that can't serve: each refusal is exit status 1, one line, and no byte changed.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq strace

# refused REGEX WRITE-ARGUMENT…: by `write`, on vol.img. refused_unchanged: and its bytes are looked
# at.
refused() {
    expect_fail 1 "^atomic4ctl: .*($1)" atomic4ctl -d vol.img write "${@:2}"
}
refused_unchanged() {
    remember vol.img
    refused "$@"
    unchanged vol.img
}
write_ok() {
    expect_ok atomic4ctl -d vol.img --json write "$@"
}
pattern big 8M >big

# --- every power of two from the block size to unit_max; all else is EINVAL ------------------------
for block in 1024 2048 4096; do
    rm -f vol.img
    expect_ok mkfs.atomic4 -q -b $block -l 16M vol.img 96M
    expect_ok atomic4ctl -d vol.img --json prealloc /db --size 16M --unit 64K
    expect_ok atomic4ctl -d vol.img --json prealloc /empty --size 0
    expect_ok atomic4ctl -d vol.img --json status /db
    json_holds '.unit_max == 2097152'
    min=$(json_value .unit_min)
    max=$(json_value .unit_max)
    is "$min" $block
    [ $((max & (max - 1))) -eq 0 ] || die "unit_max $max is no power of two"
    zeros 16M >db
    : >empty
    for ((length = min; length <= max; length *= 2)); do
        pattern "length $length" $length >new
        write_ok /db --offset 0 --from new # mapped
        json_holds ".length == $length" '.engine == "logged"'
        patch db 0 new
        write_ok /db --offset $((16777216 - length)) --from new --engine logged
        patch db $((16777216 - length)) new
        write_ok /empty --offset $length --from new # a hole before it, beyond EOF
        patch empty $length new
    done
    remember vol.img
    for ((length = min; length <= max; length *= 2)); do
        refused "the length $((length + 1)) is not a power of two|outside the limits" \
            /db --offset 0 --length $((length + 1)) --from big
        refused "the length $((length - 1)) is not a power of two|outside the limits" \
            /db --offset 0 --length $((length - 1)) --from big
        refused "the offset 1 is not a multiple of the length $length" \
            /db --offset 1 --length $length --from big
        refused "the offset 512 is not a multiple of the length $length" \
            /db --offset 512 --length $length --from big
        refused "the offset $((length / 2)) is not a multiple" \
            /db --offset $((length / 2)) --length $length --from big
    done
    for engine in auto logged; do
        refused "an atomic write of $((min / 2)) bytes is outside the limits $min..$max" \
            /db --offset 0 --length $((min / 2)) --from big --engine $engine
        refused "$((max * 2)) bytes is (outside the limits $min..$max|longer than the limit)" \
            /db --offset 0 --length $((max * 2)) --from big --engine $engine
        refused 'an atomic write of 0 bytes is outside the limits' \
            /db --offset 0 --length 0 --from big --engine $engine
        refused 'an atomic write of 512 bytes is outside the limits' \
            /db --offset 0 --length 512 --from big --engine $engine
    done
    refused 'an atomic write of 0 bytes' /db --offset 0 --from /dev/null
    refused 'the offset .* is too large|File too large|outside|beyond' \
        /db --offset 18446744073709486080 --length 64K --from big
    # A device that can't: never silently something else.
    refused 'no native atomic writes here: ' /db --offset 0 --length $min --from big --engine native
    unchanged vol.img
    kernel_roundtrip vol.img db=db empty=empty
done

# --- holes, unwritten blocks, mixed ranges (generic/770) ---------------------------------------
# The kernel makes files of 64 KiB stretches: h hole, w written, u unwritten. Each 64 KiB unit of a
# stretch pair is then overwritten across its middle.
make_image vol.img 128M
mount_image vol.img mnt
shapes=(hwh wh hw whw huh uh hu uhu wu uw wuw uwu hwuhwu woven)
make_shape() {
    local file=$1 shape=$2 i
    if [ "$shape" = woven ]; then shape=hwuhwuhwuhwuhwuh; fi
    # Blocks of 4 KiB, filling one unit of 64 KiB in turn.
    truncate -s 128K "$file"
    local step=$((16 / ${#shape} > 0 ? 16 / ${#shape} : 1))
    for ((i = 0; i < 16; ++i)); do
        case ${shape:$((i / step % ${#shape})):1} in
            w) dd if=big of="$file" bs=4K skip=$i seek=$((8 + i)) count=1 conv=notrunc status=none ;;
            u) fallocate -o $(((8 + i) * 4096)) -l 4096 "$file" ;;
        esac
    done
}
for shape in "${shapes[@]}"; do make_shape "mnt/$shape" "$shape"; done
for shape in "${shapes[@]}"; do cp --sparse=never "mnt/$shape" "expect.$shape"; done
touch mnt/prealloc && fallocate -n -l 256K mnt/prealloc # beyond EOF, and inside a preallocation
umount mnt
pairs=()
pattern woven 64K >new
for shape in "${shapes[@]}"; do
    write_ok "/$shape" --offset 0 --from new
    json_holds '.engine == "logged"'
    patch "expect.$shape" 0 new
    write_ok "/$shape" --offset 64K --from new
    patch "expect.$shape" 65536 new
    pairs+=("$shape=expect.$shape")
done
write_ok /prealloc --offset 64K --from new
{ zeros 64K && cat new; } >expect.prealloc
kernel_roundtrip vol.img "${pairs[@]}" prealloc=expect.prealloc

# On a fragmented volume, too: no file is needed, any place on the device will do.
make_image vol.img 64M -m 0
mount_image vol.img mnt
pattern pieces 12000K | split -b 4096 -a 4 -d - mnt/f
sync -f mnt
head -c 100M /dev/zero >mnt/filler 2>/dev/null || true
rm mnt/f*[02468]
truncate -s 1M mnt/sparse
umount mnt
write_ok /sparse --offset 64K --from new
{ zeros 64K && cat new && zeros 896K; } >expect.sparse
kernel_roundtrip vol.img sparse=expect.sparse

# --- ENOSPC: nothing changed ---------------------------------------------------------------------
# The same volume without an aligned run for an atomic file.
expect_ok atomic4ctl -d vol.img prealloc /unit --size 0 --unit 4M
refused_unchanged '/unit: .*(no aligned|No space|no free|free run)' /unit --offset 0 --length 64K --from big
kernel_roundtrip vol.img sparse=expect.sparse

# --- beyond EOF: the file grows -----------------------------------------------------------------
make_image vol.img 64M
expect_ok atomic4ctl -d vol.img prealloc /db --size 5000 --unit 16K
write_ok /db --offset 64K --from new
{ zeros 64K && cat new; } >expect.db
write_ok /db --offset 12K --length 4K --from new
patch expect.db 12288 <(slice new 0 4K)
expect_ok atomic4ctl -d vol.img --json status /db
json_holds '.size == 131072' '.units.problems == 0'
kernel_roundtrip vol.img db=expect.db

# --- files that take no atomic write ---------------------------------------------------------------
mount_image vol.img mnt
pattern file 64K >file
for name in append immutable encrypted verity journal generation0 inline plain; do
    cp file mnt/$name
done
chattr +a mnt/append
chattr +i mnt/immutable
mkdir mnt/dir
mknod mnt/device c 1 3
mkfifo mnt/fifo
ln -s nowhere mnt/dangling
ln -s plain mnt/symlink
umount mnt
or_flag() {
    local flags
    flags=$(debugfs -R "stat /$1" vol.img 2>/dev/null | sed -n 's/.*Flags: \(0x[0-9a-f]*\).*/\1/p' | head -1)
    debugfs -w -R "set_inode_field /$1 flags $(printf '0x%x' $((flags | $2)))" vol.img >/dev/null 2>&1
}
or_flag encrypted 0x800
or_flag verity 0x100000
or_flag journal 0x4000
debugfs -w -R 'set_inode_field /generation0 generation 0' vol.img >/dev/null 2>&1
refuses_file() {
    refused_unchanged "/?$1: .*$2" "/$1" --offset 0 --from new
    changes_nothing vol.img atomic4ctl -d vol.img write "/$1" --offset 0 --plain --from new
    is "$STATUS" 1
    expect_ok atomic4ctl -d vol.img --json status "/$1"
    json_holds '.engine == "none"' ".refused | test(\"$2\")"
}
refuses_file append 'is append-only'
refuses_file immutable 'is immutable'
refuses_file encrypted 'is encrypted: no atomic writes'
refuses_file verity 'is a verity file: no atomic writes'
refuses_file journal 'is in data=journal mode'
refuses_file generation0 'has generation 0'
refuses_file dir 'is a directory'
refuses_file device 'not a regular file'
refuses_file fifo 'not a regular file'
refuses_file .atomic4/log 'this is the redo log'
refuses_file .atomic4/lock "this is the volume's lock file"
refused_unchanged '/dangling' /dangling --offset 0 --from new
refused_unchanged '/none' /none --offset 0 --from new
write_ok /symlink --offset 0 --from new
tune2fs -o journal_data vol.img >/dev/null
refused_unchanged 'the volume mounts in data=journal mode by default: tune2fs -o \^journal_data first' \
    /plain --offset 0 --from new
tune2fs -o ^journal_data vol.img >/dev/null
write_ok /plain --offset 0 --from new
expect_ok atomic4ctl -d vol.img read /plain --offset 0 --length 64K
same_bytes new "$OUT"

# --- the log, the placement or a flush fails: EIO, in doubt, and the next opening recovers ----------
make_image vol.img 64M
pattern before 16K >before
pattern after 16K >after
expect_ok atomic4ctl -d vol.img prealloc /db --size 16K
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from before
copy_image vol.img base.img
said_and_whole() {
    is "$(wc -l <"$ERR")" 1
    out_is_empty
    err_has '^atomic4ctl: .*Input/output error'
    capture atomic4ctl --json recover vol.img
    is "$STATUS" 0
    expect_ok atomic4ctl -d vol.img read /db --offset 0 --length 16K
    cmp -s "$OUT" before || cmp -s "$OUT" after || die "neither old nor new: $CALL"
    kernel_roundtrip vol.img
}
at_each_call pwrite64,pwritev2,fdatasync error=EIO 1 said_and_whole base.img \
    atomic4ctl -d vol.img write /db --offset 0 --from after
