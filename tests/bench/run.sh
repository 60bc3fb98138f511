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
# shellcheck source=tests/bench/workspace.sh
. "$(dirname "$0")/workspace.sh"

table=$work/table
: >"$table"
failed=
printf '%-44s %12s %12s %7s  %-14s %-6s %s\n' case ours peer ratio target result note
for name in bench_open bench_mkfs bench_prealloc bench_write bench_replay \
            bench_statx bench_native bench_fragmentation; do
    # shellcheck disable=SC2086  # no form is no word
    run "$bin/$name" $form >"$work/rows"
    status=$?
    tee -a "$table" <"$work/rows"
    [ $status = 0 ] || { echo "$name: exit status $status" >&2; failed=1; }
done
echo "$(grep -c ' met ' "$table") targets met, $(grep -c ' MISSED ' "$table") missed"
# A smoke run that compared nothing has proved nothing.
[ -n "$failed" ] || grep -q ' met \| MISSED ' "$table" || failed=1
[ -z "$failed" ]
