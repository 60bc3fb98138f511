#!/usr/bin/env bash
# Builds the fuzz targets (fuzz_*.cc) with clang and libFuzzer, and runs each on its corpus.
#
#   run.sh [--keep] [SECONDS [TARGET...]]     60 seconds each, all targets (fuzz_TARGET.cc)
#   run.sh [--keep] TARGET:SECONDS...
#
# --keep adds what was found interesting to the corpus (in minimal form). An input that fails is left
# as crash-* in the current directory. What a target needs is named in its head: by lines "sources:"
# files, or patterns of them, from libatomicfs/ on, or from the root; by "libraries:" what to link.
# Exits with 77 without clang++-19.
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
       -DFMT_SHARED -D_FILE_OFFSET_BITS=64 -I"$source/libatomicfs" -I"$source/tests"
       -I"$source" -DATOMIC4_VERSION=\"fuzz\")

for target in "${targets[@]}"; do
    time=$seconds
    if [[ $target == *:* ]]; then
        time=${target#*:}
        target=${target%%:*}
    fi
    main=$here/fuzz_$target.cc
    units=("$main")
    for pattern in $(set -f && sed -n "s|^// sources: *||p" "$main"); do
        # shellcheck disable=SC2206
        found=("$source"/$pattern)
        # shellcheck disable=SC2206
        [ -e "${found[0]}" ] || found=("$source/libatomicfs"/$pattern)
        units+=("${found[@]}")
    done
    libraries=()
    for library in $(sed -n "s|^// libraries: *||p" "$main"); do libraries+=("$library"); done
    # The files of a directory as one: in a third of the time.
    rm -rf "$work/units"
    mkdir "$work/units"
    for unit in "${units[@]}"; do
        directory=$(dirname "$(realpath --relative-to "$source" "$unit")")
        echo "#include \"$(realpath "$unit")\"" >>"$work/units/${directory//\//-}.cc"
    done
    for unit in "$work"/units/*.cc; do
        printf '%s\0-o%s\0' "$unit" "${unit%.cc}.o"
    done | xargs -0 -r -n 2 -P "$(nproc)" sh -c '"$@"' - "${compiler[@]}" "${flags[@]}" -c
    "$clang" "${flags[@]}" "$work"/units/*.o "${libraries[@]}" -lfmt -o "$work/$target"
    mkdir -p "$work/found-$target"
    echo "fuzzing $target for $time s"
    # The corpus in the tree is only read.
    if ! "$work/$target" -max_total_time="$time" -max_len=4096 -rss_limit_mb=1024 \
        "$work/found-$target" "$here/corpus/$target" >"$work/log" 2>&1; then
        tail -n 100 "$work/log" >&2
        # The essence once more, where a report that was cut still has it.
        grep -aE 'does not hold|runtime error|^SUMMARY|^Base64' "$work/log" >&2
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
