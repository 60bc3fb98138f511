#!/bin/sh
# All benchmarks, one row a case, ours and the peer's figure from the same run.
#   tests/bench/run.sh [--smoke|--long] [BIN_DIR]      BIN_DIR: default build/release/bin
# Images go under TMPDIR, which must not be a tmpfs (else /var/tmp is taken): a few GiB of real
# space. Loop mounts need root; without it those rows are skipped. Exit 0 if everything ran, also
# where a target is MISSED; 1 for a crash or a wrong result.
set -u

form=
case "${1-}" in
    --smoke | --long) form=$1; shift ;;
    -*) echo "usage: $0 [--smoke|--long] [BIN_DIR]" >&2; exit 2 ;;
esac
bin=${1:-$(dirname "$0")/../../build/release/bin}
bin=$(cd "$bin" && pwd) || exit 1
export PATH="$PATH:/usr/sbin:/sbin"

base=${TMPDIR:-/tmp}
[ "$(stat -f -c %T "$base")" = tmpfs ] && base=/var/tmp
work=$(mktemp -d "$base/atomic4-bench-XXXXXX") || exit 1
work=$(cd "$work" && pwd -P)
export TMPDIR=$work

# The programs clean up after themselves unless they are killed.
child=
clean_up() {
    trap - EXIT INT TERM HUP
    [ -z "$child" ] || { kill "$child" && wait "$child"; } 2>/dev/null
    awk -v under="$work/" 'index($2, under) == 1 { print $2 }' /proc/mounts | while read -r point; do
        umount "$point" || umount -l "$point"
    done
    for file in /sys/block/loop*/loop/backing_file; do
        [ -r "$file" ] || continue
        case "$(cat "$file")" in
            "$work"/*) loop=${file#/sys/block/}; losetup -d "/dev/${loop%%/*}" ;;
        esac
    done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'clean_up; exit 130' INT TERM HUP

table=$work/table
: >"$table"
failed=
printf '%-44s %12s %12s %7s  %-14s %-6s %s\n' case ours peer ratio target result note
for name in bench_open bench_mkfs bench_prealloc bench_write bench_replay; do
    # In the background, so that a signal is answered at once.
    "$bin/$name" $form >"$work/rows" &
    child=$!
    wait $child
    status=$?
    child=
    tee -a "$table" <"$work/rows"
    [ $status = 0 ] || { echo "$name: exit status $status" >&2; failed=1; }
done
echo "$(grep -c ' met ' "$table") targets met, $(grep -c ' MISSED ' "$table") missed"
# A smoke run that compared nothing has proved nothing.
[ -n "$failed" ] || grep -q ' met \| MISSED ' "$table" || failed=1
[ -z "$failed" ]
