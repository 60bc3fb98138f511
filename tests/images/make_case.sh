#!/bin/bash
# make_case.sh NAME [FILE | -]: adds the case NAME, or renews it: makes the sound volume below, damages
# it with the commands in FILE (or on standard input; without either, those of the case itself), and
# stores image and expectations. Shows what has changed where there was a case.
# make_case.sh --expect NAME: keeps the image and renews what is expected of it.
#
# The commands run in bash, in the directory of vol.img, with the functions below and those of
# ../cli/lib.sh. ATOMIC4_BIN is the directory of the programs. Needs root.
# shellcheck disable=SC2094  # the first argument of pattern is no file
CALLED_FROM=$PWD
: "${ATOMIC4_BIN:?the directory of the programs}"
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_what_fsck_needs
need_program strace

# --- The sound volume -------------------------------------------------------------------------------
# Blocks of 1 KiB in groups of 2048, superblock copies in groups 1 and 3. Atomic files: /db, 64 KiB in
# units of 16, /dir/second, 8 in units of 4, and /tail, which ends in the middle of its only unit.
# Ordinary ones: /low, with a lower inode, and /high, with a higher one.
# make_base [MKE2FS OPTION…]: with other options instead of those for the blocks.
make_base() {
    local uuid=00112233-4455-6677-8899-aabbccddeeff
    [ $# -gt 0 ] || set -- -b 1024 -g 2048 -J size=1
    rm -f vol.img
    mkfs.atomic4 -q -N 128 -l 64K -U $uuid -E hash_seed=$uuid "$@" vol.img 8M
    pattern low 12K >low
    pattern high 12K >high
    pattern db 64K >db
    pattern second 8K >second
    pattern end 6K >end
    debug "write low low"
    debug "mkdir dir"
    make_atomic /db 64K 16K db
    make_atomic /dir/second 8K 4K second
    make_atomic /tail 6K 16K end
    debug "write high high"
    pattern new 8K >new
}

# make_atomic PATH SIZE UNIT FILE
make_atomic() {
    atomic4ctl -d vol.img prealloc "$1" --size "$2" --unit "$3" >/dev/null
    atomic4ctl -d vol.img write "$1" --offset 0 --plain --from "$4" >/dev/null
}

# --- What damages it ----------------------------------------------------------------------------------

# A command of debugfs; it keeps checksums right.
debug() {
    debugfs -w -R "$1" vol.img >/dev/null 2>&1
}
inode_of() {
    debugfs -R "stat $1" vol.img 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p'
}
# The first block of a file.
block_of() {
    debugfs -R "blocks $1" vol.img 2>/dev/null | awk '{ print $1 }'
}
# Where an inode is in the image.
inode_at() {
    debugfs -R "imap $1" vol.img 2>/dev/null |
        sed -n 's/.*located at block \([0-9]*\), offset \(0x[0-9a-f]*\).*/\1 \2/p' |
        { read -r block offset && echo $((block * 1024 + offset)); }
}
# The only extent of a file, wherever it was, begins at this block.
put_extent_at() {
    debug "sif $1 block[5] $2"
}
# poke OFFSET HEX: bytes of the image, with no checksum made right.
poke() {
    # shellcheck disable=SC2059,SC2001
    patch vol.img "$1" <(printf "$(sed 's/../\\x&/g' <<<"$2")")
}
# number_at OFFSET: the 32 bits there.
number_at() {
    od -An -tu4 -j "$1" -N 4 vol.img | tr -d ' '
}
# put_number OFFSET NUMBER: 32 bits.
put_number() {
    poke "$1" "$(printf %08x "$2" | sed 's/\(..\)\(..\)\(..\)\(..\)/\4\3\2\1/')"
}
# crc OFFSET LENGTH [START]: the raw CRC32C of bytes of the image.
crc() {
    local crc=${3:-0xffffffff} byte i
    if [ -z "${CRC_TABLE:-}" ]; then
        CRC_TABLE=()
        for ((byte = 0; byte < 256; ++byte)); do
            CRC_TABLE[byte]=$byte
            for ((i = 0; i < 8; ++i)); do
                CRC_TABLE[byte]=$((CRC_TABLE[byte] >> 1 ^ (CRC_TABLE[byte] & 1 ? 0x82f63b78 : 0)))
            done
        done
    fi
    for byte in $(od -An -v -tu1 -j "$1" -N "$2" vol.img); do
        crc=$((CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8))
    done
    echo $((crc))
}
# These change a superblock copy at an offset, and make its checksum right.
seal_superblock() {
    put_number $(($1 + 1020)) "$(crc "$1" 1020)"
}
has_right_checksum() {
    [ "$(number_at $(($1 + 1020)))" -eq "$(crc "$1" 1020)" ]
}
without_gate() {
    put_number $(($1 + 0x5c)) $(($(number_at $(($1 + 0x5c))) & ~0x10000000))
    seal_superblock "$1"
}
with_needs_replay() {
    put_number $((1024 + 0x60)) $(($(number_at $((1024 + 0x60))) | 0x10000000))
    seal_superblock 1024
}
# e2fsck complains of times in the future, as they were where the clock is behind.
settle_times() {
    local field
    has_right_checksum 1024 || return 0
    for field in 0x30 0x40; do put_number $((1024 + field)) 1704067200; done
    seal_superblock 1024
}
# Makes the checksum of a superblock of the log, at an offset, right.
seal_log_superblock() {
    put_number $(($1 + 0x0c)) 0
    put_number $(($1 + 0x0c)) "$(crc "$1" 4096)"
}
# The same of a record with a header of 4 KiB and a payload of 8, of both.
seal_record() {
    local seed
    seed=$(crc $(($1 + 0x20)) 8)              # epoch
    seed=$(crc $(($1 + 0x28)) 8 "$seed")      # sequence
    seed=$(crc $(($1 + 0x38)) 8 "$seed")      # position
    put_number $(($1 + 0x50)) "$(crc $(($1 + 4096)) 8192 "$seed")"
    put_number $(($1 + 0x0c)) 0
    put_number $(($1 + 0x0c)) "$(crc "$1" 4096 "$seed")"
}
# second_record OFFSET: a copy of the record there becomes the next one behind it.
second_record() {
    local next=$(($1 + 12288))
    patch vol.img $next <(slice vol.img "$1" 12288)
    put_number $((next + 0x28)) $(($(number_at $((next + 0x28))) + 1))
    put_number $((next + 0x38)) $(($(number_at $((next + 0x38))) + 12288))
    seal_record $next
}
# Where the redo log is in the image: it is one run.
log_at() {
    echo $(($(block_of /.atomic4/log) * 1024))
}

# killed_at CALL NUMBER COMMAND…: dies by kill -9 in that system call.
killed_at() {
    local call=$1 number=$2
    shift 2
    capture strace -qq -o /dev/null -e trace="$call" -e "inject=$call:signal=KILL:when=$number" "$@"
    is "$STATUS" 137
}
# --------------------------------------------------------------------------------------------------------

only_expectations=false
if [ "${1:-}" = --expect ]; then
    only_expectations=true
    shift
fi
[ $# -ge 1 ] || die "usage: make_case.sh [--expect] NAME [FILE | -]"
NAME=$1
CASE=$IMAGES/$NAME
mkdir -p new_case
if $only_expectations; then
    xz -dc "$CASE/image.xz" >vol.img
    cp "$CASE/how" "$CASE/image.xz" new_case/
else
    case ${2:-} in
        '') cp "$CASE/how" new_case/how ;;
        -) cat >new_case/how ;;
        *) (cd "$CALLED_FROM" && cat "$2") >new_case/how ;;
    esac
    make_base
    settle_times
    copy_image vol.img sound.img
    # shellcheck disable=SC1091
    . new_case/how
    settle_times
    ! cmp -s vol.img sound.img || die "$NAME: the commands change nothing"
    xz -9e -c vol.img >new_case/image.xz
fi
two_runs new_case
mkdir -p "$CASE"
for file in how expect.1 expect.2 expect.files; do
    if [ -e "$CASE/$file" ]; then
        diff -u --label "$NAME/$file" --label "$NAME/$file, new" "$CASE/$file" "new_case/$file" || true
    fi
done
cp new_case/* "$CASE/"
