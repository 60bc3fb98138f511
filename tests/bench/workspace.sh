# shellcheck shell=sh
# Sourced by the benchmarks' scripts: $work, a directory that goes with everything mounted, attached
# or stored in it, also when the script is interrupted; and run, for a program that may take long.
# Under TMPDIR, which must not be a tmpfs (else /var/tmp is taken).
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

# In the background, so that a signal is answered at once.
run() {
    "$@" &
    child=$!
    wait $child
    status=$?
    child=
    return $status
}
