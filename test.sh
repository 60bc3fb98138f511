#!/usr/bin/env bash
# Builds atomic4 and runs all its tests.
#
#   ./test.sh            everything in its bounded size (what CI runs)
#   ./test.sh --quick    the release build's tests only
#   ./test.sh --long     all of it, with the crash and fuzz-like suites in their long form too
#
# Needs Debian 12. As root it installs what is missing and runs the tests that mount; as another
# user those skip, with the reason. With CI=true a skipped test is a failure.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

mode=${1:---all}
case $mode in
    --all | --quick) ;;
    --long) export ATOMIC4_LONG=1 ;;
    *)
        echo "usage: ./test.sh [--quick|--long]" >&2
        exit 2
        ;;
esac

step() { printf '\n=== %s (%ss)\n' "$*" "$SECONDS"; }

step "packages"
packaging/debian-packages.sh test

werror=OFF
[ "${CI:-}" = true ] && werror=ON
jobs=$(nproc)

build() {  # preset, targets (default: all)
    local preset=$1
    shift
    cmake --preset "$preset" -DATOMIC4_WERROR=$werror >/dev/null
    cmake --build --preset "$preset" -j "$jobs" ${1:+--target "$@"} -- --quiet
}
run() {  # preset, ctest arguments
    local preset=$1
    shift
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
}

if [ "$mode" != --quick ]; then
    step "format"
    git ls-files '*.cc' '*.h' | xargs clang-format-19 --dry-run --Werror
fi

step "build: release"
build release

step "tests: release"
# Benchmarks measure; they run alone. Damaged volumes are for the sanitizers, where those follow.
without=
if [ "$mode" != --quick ]; then without=FsckDamage; fi
run release -j "$jobs" -LE bench ${without:+-E "$without"}
run release -L bench

if [ "$mode" != --quick ]; then
    step "build: address and undefined-behaviour sanitizers"
    build asan

    step "tests: sanitizers"
    run asan -j "$jobs" -L 'unit|damage|privileged|daemon|fsck' -LE 'cli|bench'
    # An I/O error at every step: no leak either.
    run asan -j "$jobs" -R '^NthFault'

    step "build: thread sanitizer"
    build tsan daemon_tests

    step "tests: thread sanitizer"
    # One thread owns the ring, which the sanitizer can't see into: with plain system calls.
    run tsan -R 'WithoutUring'

    step "lint"
    # The analyzer takes three quarters of the time: in the long form. The compile commands are
    # g++'s: clang doesn't know all of its warnings.
    checks=-clang-analyzer-*
    [ "$mode" = --long ] && checks=
    git ls-files 'libatomicfs/*.cc' 'daemon/*.cc' 'tools/*.cc' |
        xargs -P "$jobs" -n 4 clang-tidy-19 --quiet -p build/release --checks="$checks" \
            --extra-arg=-Wno-unknown-warning-option 2>/dev/null
fi

step "all tests passed"
