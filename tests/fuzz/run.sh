#!/usr/bin/env bash
# Builds the fuzz targets (fuzz_*.cc) with clang and libFuzzer, and runs each on its corpus.
#
#   run.sh [--keep] [SECONDS [TARGET...]]     60 seconds each, all targets: message reply session
#   run.sh [--keep] TARGET:SECONDS...
#
# --keep adds what was found interesting to the corpus (in minimal form). An input that fails is left
# as crash-* in the current directory. The sources that a target needs are named in its head, by
# lines "sources:", from libatomicfs/ on, or from the root. Exits with 77 without clang++-19.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
source=$here/../..

keep=false
if [ "${1:-}" = --keep ]; then
    keep=true
    shift
fi
seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in "$here"/fuzz_*.cc; do
        name=$(basename "$file" .cc)
        targets+=("${name#fuzz_}")
    done
fi
clang=$(command -v clang++-19) || {
    echo "clang++-19 is missing: packaging/debian-packages.sh test" >&2
    exit 77
}
compiler=("$clang")
! command -v ccache >/dev/null || compiler=(ccache "$clang")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=gnu++20 -O1 -g1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
       -DFMT_HEADER_ONLY -D_FILE_OFFSET_BITS=64 -I"$source/libatomicfs" -I"$source/tests"
       -I"$source" -DATOMIC4_VERSION=\"fuzz\")

for target in "${targets[@]}"; do
    time=$seconds
    if [[ $target == *:* ]]; then
        time=${target#*:}
        target=${target%%:*}
    fi
    main=$here/fuzz_$target.cc
    objects=()
    units=("$main")
    for unit in $(sed -n "s|^// sources: *||p" "$main"); do
        [ -e "$source/$unit" ] || unit=libatomicfs/$unit
        units+=("$source/$unit")
    done
    for unit in "${units[@]}"; do
        object=$work/$target-$(basename "$unit" .cc).o
        "${compiler[@]}" "${flags[@]}" -c "$unit" -o "$object"
        objects+=("$object")
    done
    "$clang" "${flags[@]}" "${objects[@]}" -o "$work/$target"
    mkdir -p "$work/found-$target"
    echo "fuzzing $target for $time s"
    # The corpus in the tree is only read.
    if ! "$work/$target" -max_total_time="$time" -max_len=4096 -rss_limit_mb=1024 \
        "$work/found-$target" "$here/corpus/$target" >"$work/log" 2>&1; then
        tail -n 100 "$work/log" >&2
        exit 1
    fi
    grep '^Done' "$work/log"
    if $keep; then
        mkdir "$work/merged-$target"
        "$work/$target" -merge=1 "$work/merged-$target" "$here/corpus/$target" \
            "$work/found-$target" >/dev/null 2>&1
        rm -rf "${here:?}/corpus/$target"
        mv "$work/merged-$target" "$here/corpus/$target"
    fi
done
