# What the command-line tests share. A test is a bash script that sources this file first:
#
#     . "$(dirname "$0")/lib.sh"
#     need_root                # if it mounts: CTest labels it privileged and locks the loop devices
#
# It runs in an empty directory of its own, with the programs from $ATOMIC4_BIN in PATH; whatever it
# mounted or attached is undone at its end, also when it fails. Any command that fails ends the test
# with the line where it happened. A test that can't run exits 77, with CI=true in the environment 1.
#
# Images are made of 4 KiB blocks unless a test says otherwise: mke2fs would take 1 KiB for small
# ones.
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C

PATH=$ATOMIC4_BIN:$PATH:/usr/sbin:/sbin
T=$(mktemp -d "${TMPDIR:-/tmp}/atomic4-cli.XXXXXX")
OUT=$T/.out
ERR=$T/.err
CHECKS=0
chmod 755 "$T"
cd "$T"
UNDO=()

undo_all() {
    local status=$? i
    trap - ERR EXIT
    set +e
    for ((i = ${#UNDO[@]} - 1; i >= 0; --i)); do
        eval "${UNDO[$i]}" >/dev/null 2>&1
    done
    cd /
    rm -rf "$T"
    [ "$status" -eq 0 ] && echo "ok: $CHECKS checks"
    exit "$status"
}
trap undo_all EXIT
trap 'exit 130' INT TERM
trap 'report_failure "$BASH_COMMAND"' ERR

# Where in the test it happened: the innermost line outside this file.
where() {
    local i
    for ((i = 1; i < ${#BASH_SOURCE[@]}; ++i)); do
        if [ "${BASH_SOURCE[$i]##*/}" != lib.sh ]; then
            echo "${BASH_SOURCE[$i]##*/}:${BASH_LINENO[$((i - 1))]}"
            return
        fi
    done
}

report_failure() {
    echo "FAILED at $(where): $1" >&2
}

die() {
    trap - ERR
    report_failure "$*"
    exit 1
}

skip() {
    if [ "${CI:-}" = true ]; then
        trap - ERR
        echo "can't run here, and CI=true: $*" >&2
        exit 1
    fi
    echo "skipped: $*"
    exit 77
}

need_root() {
    [ "$(id -u)" -eq 0 ] || skip "root is needed"
}

need_program() {
    local program
    for program; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

# --- running programs -------------------------------------------------------------------------

show_output() {
    sed 's/^/  stdout: /' "$OUT" | head -40 >&2
    sed 's/^/  stderr: /' "$ERR" | head -40 >&2
}

# Runs a command with its output in $OUT and $ERR; its exit status in $STATUS.
capture() {
    STATUS=0
    # Around it, the shell's own remark about a killed child.
    { "$@" >"$OUT" 2>"$ERR"; } 2>/dev/null || STATUS=$?
}

expect_ok() {
    expect_status 0 "$@"
}

expect_status() {
    local want=$1
    shift
    capture "$@"
    if [ "$STATUS" -ne "$want" ]; then
        show_output
        die "exit status $STATUS instead of $want: $*"
    fi
    CHECKS=$((CHECKS + 1))
}

# expect_fail STATUS REGEX CMD…: that exit status, nothing on stdout, one line on stderr, which starts
# with the program's name and matches.
expect_fail() {
    local want=$1 regex=$2 message
    shift 2
    capture "$@"
    message=$(cat "$ERR")
    if [ "$STATUS" -ne "$want" ]; then
        show_output
        die "exit status $STATUS instead of $want: $*"
    fi
    if [ -s "$OUT" ] || [ "$(wc -l <"$ERR")" -ne 1 ] ||
        ! [[ $message =~ ^(atomic4ctl|atomic4d|mkfs\.atomic4|fsck\.atomic4):\  ]]; then
        show_output
        die "want one line on stderr, with the program's name, and none on stdout: $*"
    fi
    if ! grep -Eq -- "$regex" "$ERR"; then
        show_output
        die "the message doesn't match '$regex': $*"
    fi
    CHECKS=$((CHECKS + 1))
}

out_has() {
    grep -Eq -- "$1" "$OUT" || { show_output && die "stdout lacks '$1'"; }
    CHECKS=$((CHECKS + 1))
}

out_lacks() {
    ! grep -Eq -- "$1" "$OUT" || { show_output && die "stdout has '$1'"; }
    CHECKS=$((CHECKS + 1))
}

out_is_empty() {
    [ ! -s "$OUT" ] || { show_output && die "stdout is not empty"; }
}

err_has() {
    grep -Eq -- "$1" "$ERR" || { show_output && die "stderr lacks '$1'"; }
    CHECKS=$((CHECKS + 1))
}

err_is_empty() {
    [ ! -s "$ERR" ] || { show_output && die "stderr is not empty"; }
}

# The last command's JSON: holds JQ-CONDITION…, or the value of a filter.
json_holds() {
    local condition
    for condition; do
        jq -e "$condition" "$OUT" >/dev/null || { show_output && die "JSON: not $condition"; }
        CHECKS=$((CHECKS + 1))
    done
}

json_value() {
    jq -r "$1" "$OUT"
}

same_bytes() {
    cmp -- "$1" "$2" >&2 || die "$1 and $2 differ"
    CHECKS=$((CHECKS + 1))
}

is() {
    [ "$1" = "$2" ] || die "'$1' instead of '$2'"
    CHECKS=$((CHECKS + 1))
}

# changes_nothing IMAGE CMD…: whatever the command's exit status, no byte of the image changes, nor
# its size.
changes_nothing() {
    local image=$1
    shift
    remember "$image"
    capture "$@"
    unchanged "$image"
}

# The image is, byte for byte, what it was when it was remembered.
remember() {
    copy_image "$1" "$T/.before"
}
unchanged() {
    cmp -s "$1" "$T/.before" || die "$1 was changed"
    CHECKS=$((CHECKS + 1))
}

as_nobody() {
    if [ ! -d "$T/bin" ]; then
        # The build may lie where nobody can't reach it.
        mkdir "$T/bin"
        cp "$ATOMIC4_BIN"/{atomic4ctl,mkfs.atomic4} "$T/bin/"
    fi
    PATH=$T/bin:$PATH setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}

# --- bytes ------------------------------------------------------------------------------------

# pattern SEED BYTES >FILE: no two blocks are equal, and the same seed gives the same bytes.
pattern() {
    local bytes
    bytes=$(size_of "$2")
    head -c "$bytes" < <(seq -f "$1 %.0f" 1 "$((bytes / 4 + 1))" || true)
}

size_of() {
    numfmt --from=iec "$1"
}

zeros() {
    head -c "$(size_of "$1")" /dev/zero
}

# slice FILE OFFSET LENGTH
slice() {
    dd if="$1" bs=64K iflag=skip_bytes,count_bytes skip="$2" count="$3" status=none
}

# patch FILE OFFSET NEW: FILE with the bytes of NEW put over its own.
patch() {
    dd if="$3" of="$1" bs=64K oflag=seek_bytes seek="$2" conv=notrunc status=none
}

# --- images -----------------------------------------------------------------------------------

# make_image NAME SIZE [MKFS OPTION…]: an atomic4 image.
make_image() {
    local name=$1 size=$2
    shift 2
    rm -f "$name"
    expect_ok mkfs.atomic4 -q -b 4096 "$@" "$name" "$size"
    err_is_empty
    out_is_empty
}

# make_ext4 NAME SIZE [MKE2FS OPTION…]: a plain ext4.
make_ext4() {
    local name=$1 size=$2
    shift 2
    rm -f "$name"
    mke2fs -q -t ext4 -b 4096 "$@" "$name" "$size" >/dev/null
}

copy_image() {
    rm -f "$2"
    cp --sparse=always "$1" "$2"
}

has_feature() {
    dumpe2fs -fh "$1" 2>/dev/null | grep "^Filesystem features:.*\b$2\b" >/dev/null
}

clear_gate() {
    debugfs -w -R 'feature -FEATURE_C28' "$1" >/dev/null 2>&1
    ! has_feature "$1" FEATURE_C28 || die "debugfs can't clear the gate bit of $1"
}

# As nobody should: no stock tool opens such a volume, so the bit (0x10000000 of s_feature_incompat)
# is cleared by hand, and debugfs, told to ignore the bad checksum, then writes a right one.
clear_needs_replay() {
    local byte
    byte=$(od -An -tu1 -j 1123 -N 1 "$1")
    # shellcheck disable=SC2059
    patch "$1" 1123 <(printf "\\x$(printf %x $((byte & ~0x10)))")
    debugfs -w -n -R 'ssv wtime now' "$1" >/dev/null 2>&1
    ! has_feature "$1" FEATURE_I28 || die "the needs-replay bit of $1 is still set"
}

# leave_record IMAGE PATH FILE: a write of FILE at the beginning of PATH that dies when it has its record
# in the redo log, and nothing of it in PATH. Needs strace.
leave_record() {
    local image=$1 path=$2 file=$3 number
    copy_image "$image" "$T/.trial"
    strace -qq -o "$T/.trace" -e trace=pwrite64,pwritev2 \
        atomic4ctl -d "$T/.trial" write "$path" --offset 0 --engine logged --from "$file" >/dev/null
    number=$(awk '/^pwrite64/ { ++n; if (logged) { print n; exit } }
                  /^pwritev2/ && $NF >= 12288 { logged = 1 }' "$T/.trace")
    capture strace -qq -o /dev/null -e trace=pwrite64 -e "inject=pwrite64:signal=KILL:when=$number" \
        atomic4ctl -d "$image" write "$path" --offset 0 --engine logged --from "$file"
    is "$STATUS" 137
    rm -f "$T/.trial" "$T/.trace"
}

# The primary superblock's needs-replay bit, with a right checksum. Needs python3.
set_needs_replay() {
    python3 - "$1" "$2" <<'END'
import sys
with open(sys.argv[1], "r+b") as image:
    image.seek(1024)
    super = bytearray(image.read(1024))
    super[0x63] = super[0x63] & ~0x10 | (0x10 if sys.argv[2] == "on" else 0)
    crc = 0xffffffff
    for byte in super[:1020]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    super[1020:] = crc.to_bytes(4, "little")
    image.seek(1024)
    image.write(super)
END
}

# debug_live IMAGE COMMAND…: debugfs on a volume that needs replay, which it refuses.
debug_live() {
    local image=$1 command
    shift
    set_needs_replay "$image" off
    for command; do debugfs -w -R "$command" "$image" >/dev/null 2>&1; done
    set_needs_replay "$image" on
}

xattrs() {
    debugfs -R "ea_list $2" "$1" 2>/dev/null | sed -n 's/^  //p'
}

# Stock e2fsck -fn has no complaint about a copy without the gate bit.
e2fsck_clean() {
    local image=$1 status=0
    copy_image "$image" "$T/.fsck"
    if has_feature "$T/.fsck" FEATURE_C28; then clear_gate "$T/.fsck"; fi
    e2fsck -fn "$T/.fsck" >"$T/.fsck.out" 2>&1 || status=$?
    if [ "$status" -ne 0 ] ||
        grep -Evq '^(e2fsck [0-9]|Pass [1-5]:|.*: [0-9]+/[0-9]+ files )' "$T/.fsck.out"; then
        cat "$T/.fsck.out" >&2
        die "e2fsck -fn on $image: exit status $status"
    fi
    rm "$T/.fsck"
    CHECKS=$((CHECKS + 1))
}

check_clean() {
    expect_ok atomic4ctl -d "$1" --json check
    json_holds '.clean' '.findings == []'
}

is_refused_by_stock_tools() {
    local status=0
    mkdir -p "$T/.mnt"
    if mount -o loop "$1" "$T/.mnt" 2>"$T/.mount.err"; then
        umount "$T/.mnt"
        die "the kernel mounted $1"
    fi
    e2fsck -fn "$1" >"$T/.fsck.out" 2>&1 || status=$?
    [ $((status & 8)) -ne 0 ] || die "e2fsck ran on $1 (exit status $status)"
    CHECKS=$((CHECKS + 1))
}

# --- the kernel -------------------------------------------------------------------------------

# attach VARIABLE IMAGE [LOSETUP OPTION…]
attach() {
    local -n attach_into=$1
    local image=$2
    shift 2
    attach_into=$(losetup --show -f "$@" "$image")
    UNDO+=("losetup -d $attach_into")
}

detach() {
    losetup -d "$1"
}

# mount_image IMAGE DIRECTORY [OPTION…]
mount_image() {
    local image=$1 directory=$2
    shift 2
    mkdir -p "$directory"
    mount -o loop "$@" "$image" "$directory"
    UNDO+=("umount '$directory'")
}

# kernel_roundtrip IMAGE [PATH=FILE…]: no live record is left, so a stock kernel mounts the volume
# read-write, reads the expected bytes and writes another file; after that check and e2fsck are
# clean.
kernel_roundtrip() {
    local image=$1 pair
    shift
    ! has_feature "$image" FEATURE_I28 || die "$image: the needs-replay bit is still set"
    mount_image "$image" "$T/.mnt"
    for pair; do
        cmp "$T/.mnt/${pair%%=*}" "${pair#*=}" >&2 ||
            die "the kernel reads other bytes from ${pair%%=*} than ${pair#*=} has"
        CHECKS=$((CHECKS + 1))
    done
    pattern "kernel $CHECKS" 70000 >"$T/.kernel"
    cp "$T/.kernel" "$T/.mnt/written-by-the-kernel"
    sync "$T/.mnt/written-by-the-kernel"
    cmp "$T/.kernel" "$T/.mnt/written-by-the-kernel" >&2 || die "the kernel's own file differs"
    rm "$T/.mnt/written-by-the-kernel"
    umount "$T/.mnt"
    if has_feature "$image" FEATURE_C28; then check_clean "$image"; fi
    e2fsck_clean "$image"
}

# --- crashes ----------------------------------------------------------------------------------

# file_in_two_runs IMAGE PATH: 8 KiB, whose two blocks are apart on the device.
file_in_two_runs() {
    local image=$1 path=$2
    pattern "first half" 4K >"$T/.half1"
    pattern "second half" 4K >"$T/.half2"
    expect_ok atomic4ctl -d "$image" prealloc "$path" --size 4K --unit 4K
    expect_ok atomic4ctl -d "$image" prealloc "$path-between" --size 4K --unit 4K
    expect_ok atomic4ctl -d "$image" write "$path" --offset 0 --from "$T/.half1"
    expect_ok atomic4ctl -d "$image" write "$path" --offset 4K --from "$T/.half2"
    expect_ok atomic4ctl -d "$image" --json map "$path"
    json_holds '.runs | length == 2' '[.runs[].device_offset] | .[1] != .[0] + 4096'
}

# The number of the pwrite64 call that places the second run of `write PATH --offset 0 --from NEW`,
# found in a trial on a copy: the second one after the log record, which is the long durable write.
second_placement() {
    local image=$1 path=$2 new=$3
    copy_image "$image" "$T/.trial"
    strace -qq -o "$T/.trace" -e trace=pwrite64,pwritev2 \
        atomic4ctl -d "$T/.trial" write "$path" --offset 0 --engine logged --from "$new" \
        >/dev/null 2>&1
    rm "$T/.trial"
    awk '/^pwrite64/ { ++n; if (logged && ++placed == 2) { print n; exit } }
         /^pwritev2/ && $NF >= 12288 { logged = 1 }' "$T/.trace"
}

# at_each_call CALLS INJECTION STATUS CALLBACK BASE COMMAND…: runs the command, on a copy of BASE named
# vol.img, with the injection (strace's) at each of these system calls in turn; it ends with that
# status; then calls back, with the call and its number in CALL.
at_each_call() {
    local calls=$1 injection=$2 status=$3 callback=$4 base=$5 call count when
    shift 5
    copy_image "$base" vol.img
    strace -qq -o trace -e trace="$calls" "$@" >/dev/null 2>&1
    [ -s trace ] || die "none of $calls: $*"
    for call in ${calls//,/ }; do
        count=$(grep -c "^$call" trace || true)
        for ((when = 1; when <= count; ++when)); do
            CALL="$call $when"
            copy_image "$base" vol.img
            capture strace -qq -o /dev/null -e trace="$call" \
                -e "inject=$call:$injection:when=$when" "$@"
            is "$STATUS" "$status"
            $callback
        done
    done
}

# wait_for CONDITION…: until the command succeeds, a minute at most.
wait_for() {
    local end=$((SECONDS + 60))
    until "$@"; do
        [ $SECONDS -lt $end ] || die "it never came true: $*"
        sleep 0.05
    done
}

# killed_half_way IMAGE PATH NEW: a write that dies by kill -9 when one of its two runs is placed.
killed_half_way() {
    local image=$1 path=$2 new=$3 number
    number=$(second_placement "$image" "$path" "$new")
    [ -n "$number" ] || die "no placement of a second run found"
    capture strace -qq -o /dev/null -e trace=pwrite64 -e "inject=pwrite64:signal=KILL:when=$number" \
        atomic4ctl -d "$image" write "$path" --offset 0 --engine logged --from "$new"
    is "$STATUS" 137
    out_is_empty
}
