#!/bin/bash
# fsck.atomic4 beside e2fsck: a full check with the caches cold and warm, the look at a clean volume,
# and peak memory; one row a case, ours and e2fsck's figure from the same run.
#   tests/bench/fsck.sh [--smoke] [--write] [--only PART-OF-NAME] [BIN_DIR]
# BIN_DIR: default build/release/bin. Several minutes and 5 GiB of real space, under TMPDIR, which
# must not be a tmpfs (else /var/tmp is taken). Needs root, /dev/fuse, and a quiet machine, whose
# caches it drops. Exit 0 if everything ran, also where a target is MISSED; 1 for a crash or a wrong
# result; 77 where it can't run.
#
# e2fsck refuses the volume itself, so it gets a copy without the gate bit. Both are given -fn: that
# writes nothing, therefore every round finds what the first one found, and no writing back of the
# round before is in anyone's time. --write compares -fy instead, with which fsck.atomic4 also looks
# at the end whether its files are as they were. Both work on the image itself, not on a loop
# device, whose file would be in the cache however it is read.
set -u
export LC_ALL=C

usage() {
    echo "usage: $0 [--smoke] [--write] [--only PART-OF-NAME] [BIN_DIR]" >&2
    exit 2
}
smoke=
check=-fn
only=
bin=$(dirname "$0")/../../build/release/bin
while [ $# -gt 0 ]; do
    case "$1" in
        --smoke) smoke=1 ;;
        --write) check=-fy ;;
        --only) [ $# -gt 1 ] || usage; only=$2; shift ;;
        -*) usage ;;
        *) bin=$1 ;;
    esac
    shift
done
bin=$(cd "$bin" && pwd) || exit 1

skip() {
    [ "${CI:-}" != true ] || { echo "can't run here, and CI=true: $*" >&2; exit 1; }
    echo "skipped: $*"
    exit 77
}
[ "$(id -u)" -eq 0 ] || skip "root is needed"
[ -c /dev/fuse ] || skip "there is no /dev/fuse"
[ -w /proc/sys/vm/drop_caches ] || [ -n "$smoke" ] || skip "the caches can't be dropped"

# shellcheck source=tests/bench/workspace.sh
. "$(dirname "$0")/workspace.sh"

made=$work/made.img
volume=$work/volume.img  # an atomic4 volume
copy=$work/copy.img      # the same without the gate bit
said=$work/said
table=$work/table
: >"$table"

die() {
    echo "$0: $*" >&2
    [ ! -s "$said" ] || sed 's/^/  /' "$said" | head -20 >&2
    exit 1
}

# --- measuring --------------------------------------------------------------------------------

# Runs a program that has to exit 0. Its time, in microseconds, in $spent.
timed() {
    local begin=${EPOCHREALTIME/./}
    run "$@" >"$said" 2>&1 || die "exit status $?: $*"
    spent=$((${EPOCHREALTIME/./} - begin))
}

# Sets $tree_kib to what a process and its descendants have had in memory at most, as far as they are
# alive: the sum of their peaks.
add_tree() {
    local word value children each
    while read -r word value _; do
        [ "$word" != VmHWM: ] || tree_kib=$((tree_kib + value))
    done 2>/dev/null <"/proc/$1/status"
    children=$(cat "/proc/$1/task/"*/children 2>/dev/null)
    for each in $children; do add_tree "$each"; done
}

# Runs a program that has to exit 0. The peak of all its processes together, in KiB, in $peak. What
# only lives for moments may be missed.
weighed() {
    peak=0
    "$@" >"$said" 2>&1 &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        tree_kib=0
        add_tree "$child"
        [ $tree_kib -le $peak ] || peak=$tree_kib
        sleep 0.005
    done
    wait "$child" || die "exit status $?: $*"
    child=
}

cold() {
    # Other tests may be running beside a smoke run.
    [ -n "$smoke" ] && return
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

median() {
    printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 }
        END { m = int((NR + 1) / 2); printf "%.0f\n", NR % 2 ? v[m] : (v[m] + v[m + 1]) / 2 }'
}

# --- rows -------------------------------------------------------------------------------------

as_seconds() {
    awk -v us="$1" 'BEGIN {
        if (us < 100000) printf "%.1f ms", us / 1000; else printf "%.3f s", us / 1e6 }'
}
as_mib() {
    awk -v kib="$1" 'BEGIN { printf "%.1f MiB", kib / 1024 }'
}
as_ratio() {
    awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'
}
# holds VALUE LIMIT
holds() {
    awk -v a="$1" -v b="$2" 'BEGIN { print(a <= b ? "met" : "MISSED") }'
}
print_row() {
    printf '%-44s %12s %12s %7s  %-14s %-6s %s\n' "$@" | tee -a "$table"
}
# The medians of arrays; target: a ratio.
row_of_ratio() {
    local name=$1 target=$4 note=$5
    local -n of_ours=$2 of_peer=$3
    local ours peer
    ours=$(median "${of_ours[@]}")
    peer=$(median "${of_peer[@]}")
    print_row "$name" "$(as_seconds "$ours")" "$(as_seconds "$peer")" "$(as_ratio "$ours" "$peer")" \
        "<= $target x peer" \
        "$(holds "$ours" "$(awk -v a="$peer" -v b="$target" 'BEGIN { print a * b }')")" "$note"
}

# --- the cases --------------------------------------------------------------------------------

clear_gate() {
    debugfs -w -R 'feature -FEATURE_C28' "$1" >/dev/null 2>&1
    ! dumpe2fs -h "$1" 2>/dev/null | grep -q '^Filesystem features:.*FEATURE_C28' ||
        die "debugfs can't clear the gate bit"
}

ours_checks() {
    cold
    timed "$bin/fsck.atomic4" "$check" "$volume"
    ours_cold+=("$spent")
    timed "$bin/fsck.atomic4" "$check" "$volume"
    ours_warm+=("$spent")
}
peer_checks() {
    cold
    timed e2fsck "$check" "$copy"
    peer_cold+=("$spent")
    timed e2fsck "$check" "$copy"
    peer_warm+=("$spent")
}

# measure NAME ROUNDS: the volume that has been made.
measure() {
    local name=$1 rounds=$2 round ours_peak peer_peak limit
    local -a ours_cold=() ours_warm=() peer_cold=() peer_warm=() ours_clean=() peer_clean=()
    # Two copies: neither lies more in pieces than the other, nor has other holes.
    mv "$volume" "$made" || exit 1
    run cp --sparse=auto "$made" "$volume" || exit 1
    run cp --sparse=auto "$made" "$copy" || exit 1
    rm "$made"
    clear_gate "$copy"
    for ((round = 0; round < rounds; ++round)); do
        # Each is the first one as often as the other.
        if ((round % 2 == 0)); then
            ours_checks
            peer_checks
        else
            peer_checks
            ours_checks
        fi
    done
    row_of_ratio "fsck $check, $name, cold" ours_cold peer_cold 1.3 "$rounds rounds"
    row_of_ratio "fsck $check, $name, warm" ours_warm peer_warm 1.6 "$rounds rounds"

    # Each once before: warm, as after any other look at the volume.
    timed "$bin/fsck.atomic4" -p "$volume"
    timed e2fsck -p "$copy"
    for ((round = 0; round < 5; ++round)); do
        timed "$bin/fsck.atomic4" -p "$volume"
        grep -q ': clean,' "$said" || die "fsck.atomic4 -p: it wasn't clean"
        ours_clean+=("$spent")
        timed e2fsck -p "$copy"
        grep -q ': clean,' "$said" || die "e2fsck -p: it wasn't clean"
        peer_clean+=("$spent")
    done
    local ours peer
    ours=$(median "${ours_clean[@]}")
    peer=$(median "${peer_clean[@]}")
    print_row "fsck -p, $name, clean" "$(as_seconds "$ours")" "$(as_seconds "$peer")" \
        "$(as_ratio "$ours" "$peer")" "<= 50.0 ms" "$(holds "$ours" 50000)" "5 rounds, warm"

    # Not in the rounds: the watching takes time, too.
    weighed "$bin/fsck.atomic4" "$check" "$volume"
    ours_peak=$peak
    weighed e2fsck "$check" "$copy"
    peer_peak=$peak
    limit=$((peer_peak + 64 * 1024))
    print_row "fsck $check, $name, peak memory" "$(as_mib "$ours_peak")" "$(as_mib "$peer_peak")" \
        "$(as_ratio "$ours_peak" "$peer_peak")" "<= $(as_mib $limit)" \
        "$(holds "$ours_peak" $limit)" "peer + 64 MiB; with its e2fsck"
    rm -f "$volume" "$copy"
}

# --- the volumes ------------------------------------------------------------------------------

make_volume() {
    rm -f "$volume"
    run "$bin/mkfs.atomic4" -q "$volume" "$1" || exit 1
}

# prealloc NUMBER OF FILES, SIZE
prealloc() {
    local i
    for ((i = 0; i < $1; ++i)); do
        run "$bin/atomic4ctl" -d "$volume" prealloc "/atomic-$i" --size "$2" --unit 16K \
            >/dev/null || exit 1
    done
}

# small_files DIRECTORIES FILES: so many files of less than a block in each.
small_files() {
    local point=$work/mnt text d f
    printf -v text '%2000s' text
    mkdir -p "$point"
    mount -o loop "$volume" "$point" || exit 1
    for ((d = 0; d < $1; ++d)); do
        mkdir "$point/$d" || exit 1
        for ((f = 0; f < $2; ++f)); do
            echo "$text" >"$point/$d/file-$f" || exit 1
        done
    done
    umount "$point" || exit 1
}

# case_of NAME ROUNDS FUNCTION
case_of() {
    [[ -n $smoke || $1 == *"$only"* ]] || return 0
    "$3"
    measure "$1" "$2"
}

many_files() {
    make_volume 4G
    small_files 200 1000
    prealloc 4 16M
}
large_files() {
    make_volume 1T
    prealloc 100 1G
}
nothing() {
    make_volume 15T
}
few_of_all() {
    make_volume 64M
    small_files 2 20
    prealloc 2 1M
}

printf '%-44s %12s %12s %7s  %-14s %-6s %s\n' case ours peer ratio target result note
if [ -n "$smoke" ]; then
    case_of "64M" 1 few_of_all
else
    case_of "200,000 files" 5 many_files
    case_of "1T, 100G atomic" 5 large_files
    case_of "15T empty" 2 nothing
fi
echo "$(grep -c ' met ' "$table") targets met, $(grep -c ' MISSED ' "$table") missed"
# A run that compared nothing has proved nothing.
grep -q ' met \| MISSED ' "$table"
