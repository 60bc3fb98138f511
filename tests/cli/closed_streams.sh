# Programs that are started with standard input, output and error closed: what they print must not
# be written over the volume, which would be the first file that they open.
. "$(dirname "$0")/lib.sh"
need_root

# Where nothing asks for aligned writes.
mkdir ram
mount -t tmpfs none ram
UNDO+=("umount '$T/ram'")
vol=ram/vol.img
pattern db 16K >db
superblock_is_sound() {
    slice "$vol" 0 1024 | cmp - <(zeros 1024) || die "something is written before the superblock"
    expect_ok atomic4ctl -d "$vol" check
}
truncate -s 64M "$vol"
mke2fs -q -t ext4 -b 4096 "$vol"
# It warns while it has the volume open.
atomic4ctl enable "$vol" 2>&-
superblock_is_sound
rm "$vol"
truncate -s 64M "$vol"
mkfs.atomic4 -b 4096 "$vol" <&- >&- 2>&-
superblock_is_sound
for closed in '<&-' '>&-' '<&- >&- 2>&-' '>&- 2>&-'; do
    for command in "-d $vol prealloc /db$RANDOM --size 1M" "-d $vol ls" "-d $vol check" "info $vol" \
        "-d $vol prealloc / --size 1M" "recover $vol"; do
        eval "atomic4ctl $command $closed" 2>/dev/null || true
        slice "$vol" 0 1024 | cmp - <(zeros 1024) || die "atomic4ctl $command $closed"
        CHECKS=$((CHECKS + 1))
    done
done
superblock_is_sound
expect_ok atomic4ctl -d "$vol" prealloc /db --size 1M
atomic4d --foreground --log-level debug --socket "$T/sock" "$vol" <&- >&- 2>&- &
DAEMON=$!
UNDO+=("kill $DAEMON; wait $DAEMON")
answers() { [ -S "$T/sock" ] && atomic4ctl --socket "$T/sock" ping -c 1 >/dev/null 2>&1; }
wait_for answers
expect_ok atomic4ctl --socket "$T/sock" write /db --offset 0 --from db
kill $DAEMON
wait $DAEMON
superblock_is_sound
for closed in '<&-' '>&-' '<&- >&- 2>&-'; do
    eval "fsck.atomic4 -fy $vol $closed" 2>/dev/null || die "fsck.atomic4 $closed"
    superblock_is_sound
done

# Without /dev/null: no matter as long as they are open, and said where one is not.
without_null() { unshare -m --propagation slave sh -c 'mount -t tmpfs none /dev && exec "$@"' sh "$@"; }
expect_ok without_null "$(command -v atomic4ctl)" --version
expect_status 127 without_null sh -c 'exec "$1" --version <&-' sh "$(command -v atomic4ctl)"
err_has '^a standard stream is closed, and there is no /dev/null in its place$'
