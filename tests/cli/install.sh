# What `cmake --install` puts where; and a program that is built against it, as a user would.
. "$(dirname "$0")/lib.sh"
need_program cmake pkg-config cc

build=$ATOMIC4_BIN/..
[ -f "$build/cmake_install.cmake" ] || skip "$build is no build directory"
for file in bin/atomic4d bin/mount.atomic4 libatomicfs/libatomic4client.so; do
    [ -e "$build/$file" ] || skip "not everything is built: $file"
done
expect_ok env DESTDIR="$T/root" cmake --install "$build"

value() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }
prefix=$(value CMAKE_INSTALL_PREFIX)
libdir=$(value CMAKE_INSTALL_LIBDIR)
root=$T/root$prefix
for program in mkfs.atomic4 mount.atomic4 umount.atomic4 atomic4ctl atomic4d; do
    [ -x "$root/sbin/$program" ] || die "no $program"
done
for program in atomic4ctl atomic4d; do
    expect_ok "$root/sbin/$program" --version
    out_has "^$program [0-9]"
done
# Every page of the source, and a page for every program.
for page in "$ATOMIC4_SOURCE"/man/*.[1-9]; do
    same_bytes "$page" "$root/share/man/man${page##*.}/${page##*/}"
done
for program in "$root"/sbin/*; do
    [ -e "$root/share/man/man8/${program##*/}.8" ] || die "no man page of ${program##*/}"
    CHECKS=$((CHECKS + 1))
done
# A completion for every program, where bash-completion and zsh look.
for program in "$root"/sbin/*; do
    name=${program##*/}
    same_bytes "$ATOMIC4_SOURCE/packaging/completions/bash/$name" \
        "$root/share/bash-completion/completions/$name"
    sed -n 1p "$root/share/zsh/site-functions/_atomic4" | grep -wF "$name" >/dev/null ||
        die "no zsh completion of $name"
done
same_bytes "$ATOMIC4_SOURCE/libatomicfs/client/atomic4_client.h" "$root/include/atomic4_client.h"
for unit in atomic4d@.service atomic4d@.socket; do
    [ -f "$root/lib/systemd/system/$unit" ] || die "no $unit"
done
grep -q "^ExecStart=$prefix/sbin/atomic4d " "$root/lib/systemd/system/atomic4d@.service" ||
    die "the unit starts another atomic4d"
# Nothing that only the build needs.
is "$(find "$T/root" -name '*.a' -o -name '*test*' -o -name '*bench*' | wc -l)" 0

# --- the library ----------------------------------------------------------------------------------
library=$root/$libdir
is "$(readlink "$library/libatomic4client.so")" libatomic4client.so.0
export PKG_CONFIG_PATH=$library/pkgconfig PKG_CONFIG_SYSROOT_DIR=$T/root
expect_ok pkg-config --modversion atomic4client
# shellcheck disable=SC2046
expect_ok cc -Wall -Wextra -Werror -o example "$ATOMIC4_SOURCE/daemon/example.c" \
    $(pkg-config --cflags --libs atomic4client)
capture env LD_LIBRARY_PATH="$library" ./example "$T/none" "$OUT"
is "$STATUS" 1
err_has "^$OUT: connecting to $T/none: No such file or directory"
# README.md shows that program, from main on.
is "$(sed -n '/^int main/,$p' "$ATOMIC4_SOURCE/daemon/example.c")" \
    "$(sed -n '/^int main/,/^```/p' "$ATOMIC4_SOURCE/README.md" | grep -v '^```')"
# Only its own names are seen by a program.
is "$(nm -D --defined-only "$library/libatomic4client.so.0" | awk '$2 != "A" && $3 !~ /^a4_/' | wc -l)" 0
