#!/usr/bin/env bash
# Builds atomic4 and runs all its tests.
#
#   ./test.sh            all tests in their bounded size, each in one build (what CI runs)
#   ./test.sh --quick    the release build's tests only
#   ./test.sh --long     all in both builds, with the crash and fuzz-like suites in their long form
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

# What a test unmounts goes from the namespaces of other tests, too: without that it would stay busy.
if [ -z "${ATOMIC4_MOUNTS_SHARED:-}" ] && unshare --mount --propagation shared true 2>/dev/null; then
    exec env ATOMIC4_MOUNTS_SHARED=1 unshare --mount --propagation shared ./test.sh "$mode"
fi

step() { printf '\n=== %s (%ss)\n' "$*" "$SECONDS"; }

step "packages"
packaging/debian-packages.sh test

werror=OFF
[ "${CI:-}" = true ] && werror=ON
jobs=$(nproc)
# The cache needn't preprocess to find out what a source depends on: a third of the time of a first
# build.
export CCACHE_DEPEND=1
# Images of many MiB come and go: freed memory stays mapped, and less of it waits to be reused.
export ASAN_OPTIONS=${ASAN_OPTIONS:-quarantine_size_mb=64:allocator_release_to_os_interval_ms=-1}

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

if [ "$mode" = --quick ]; then
    step "build: release"
    build release
    step "tests: release"
    run release -j "$jobs" -LE bench
    step "all tests passed"
    exit
fi

step "format"
git ls-files '*.cc' '*.h' | xargs clang-format-19 --dry-run --Werror

# Each test runs in one build: the sanitizers' has what is tested through the library and the
# daemon, and damaged volumes; the release build has the commands as a user types them, crash
# states, and what is measured. The long form runs all of them in the release build too.
sanitized='unit|damage|privileged|daemon|fsck|images'
step "build: release"
if [ "$mode" = --long ]; then
    # Each file by itself, too.
    build debug programs
    build release
    step "tests: release"
    run release -j "$jobs" -LE bench
else
    build release programs client_example client_pages crash_tests benchmarks
    step "tests: release"
    run release -j "$jobs" -L 'cli|crash|fuzz' -E '^NthFault'
fi
# They measure: alone.
run release -L bench

step "build: address and undefined-behaviour sanitizers"
build asan programs unit_tests crash_tests damage_tests kernel_tests fsck_tests daemon_tests

step "tests: sanitizers"
run asan -j "$jobs" -L "$sanitized" -LE 'cli|bench'
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
checks=,-clang-analyzer-*
[ "$mode" = --long ] && checks=
# Many files in one compilation, as they are built: the headers take longest.
sed -n "s|^  \"file\": \"$PWD/\(.*\.c[cx]\+\)\".*|\1|p" build/release/compile_commands.json |
    sort -u | grep -E '^(build/release/)?(libatomicfs|daemon|tools)/' |
    xargs -P "$jobs" -n 1 clang-tidy-19 --quiet -p build/release \
        --checks="-bugprone-suspicious-include$checks" \
        --extra-arg=-Wno-unknown-warning-option 2>/dev/null

step "all tests passed"
