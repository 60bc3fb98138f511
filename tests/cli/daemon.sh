# atomic4d and the commands that work through it, as a user types them: on a mounted volume in the
# foreground and the background, on an unmounted image, and what each refuses.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq awk python3

pattern one 16K >one
pattern two 16K >two
make_image vol.img 96M
expect_ok atomic4ctl -d vol.img prealloc /db --size 1M
# chattr +j, which as a mounted file needs CAP_SYS_RESOURCE: the kernel would write its data twice, and
# direct writes through the page cache.
expect_ok atomic4ctl -d vol.img prealloc /journaled --size 64K
debugfs -w -R 'set_inode_field /journaled flags 0x84000' vol.img >/dev/null 2>&1
debugfs -w -R 'ea_rm /journaled trusted.atomic4.unit' vol.img >/dev/null 2>&1
copy_image vol.img owned.img
mount_image vol.img mnt
chmod 755 mnt
socket=$T/sock

# start ARGUMENT…: in the foreground, until it answers. Its process id in DAEMON.
start() {
    atomic4d --foreground --socket "$socket" --pid-file "$T/pid" "$@" >daemon.out 2>daemon.err &
    DAEMON=$!
    UNDO+=("kill $DAEMON; wait $DAEMON")
    wait_for answers
}
answers() {
    kill -0 "$DAEMON" || die "atomic4d ended: $(cat daemon.err)"
    [ -S "$socket" ] && atomic4ctl --socket "$socket" ping -c 1 >/dev/null 2>&1
}
# SIGTERM ends it with 0, and takes its socket and pid file away.
stop() {
    local status=0
    kill "$DAEMON"
    wait "$DAEMON" || status=$?
    is "$status" 0
    [ ! -e "$socket" ] || die "the socket is still there"
    [ ! -e "$T/pid" ] || die "the pid file is still there"
}
by() { atomic4ctl --socket "$socket" "$@"; }
# prometheus FILE: each line is a comment of the format, or a sample with a number.
prometheus() {
    [ -s "$1" ] || die "$1 is empty"
    local wrong
    wrong=$(grep -Evn '^# (HELP|TYPE) [a-zA-Z_:][a-zA-Z0-9_:]* .+$|^[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\]|\\.)*",?)+\})? [-+0-9.eEInf]+$' "$1" || true)
    [ -z "$wrong" ] || die "no Prometheus text: $wrong"
    CHECKS=$((CHECKS + 1))
}

# --- a mounted volume -------------------------------------------------------------------------
start --stats "$T/stats.prom" mnt
is "$(stat -c %a "$socket")" 660
is "$(cat pid)" "$DAEMON"

# In the words of the system that it is mounted in: any name of the file.
expect_ok by write mnt/db --offset 16K --from one
out_has '^mnt/db: 16384 bytes at 16384, logged \(not native: .+\), (exclusive|strict)'
err_is_empty
slice mnt/db 16384 16384 | cmp - one || die "other bytes in the mounted file"
cd mnt
expect_ok by --json write db --offset 0 --length 16K --engine logged --from - <"$T/two"
cd ..
json_holds '.path == "db"' '.offset == 0' '.length == 16384' '.engine == "logged"' \
    '.ack | . == "exclusive" or . == "strict"' '.why_not_native == ""' 'has("why_strict")'
expect_ok by --json write mnt/db --plain --offset 40001 --from one
json_holds '.engine == "plain"' '.ack == "none"' '.length == 16384'
{ cat two one && zeros 7233 && cat one && zeros $((1048576 - 40001 - 16384)); } >want
same_bytes want mnt/db
expect_ok by read mnt/db --offset 0 --length 2M
same_bytes want "$OUT"
expect_ok by read mnt/db --offset 1M --length 4K
out_is_empty

expect_ok by --json status mnt/db
json_holds '.path == "mnt/db"' '.size == 1048576' .atomic '.unit == 16384' '.unit_min == 4096' \
    '.unit_max == .unit_max_logged' '.segments_max == 1' '.engine == "logged"' \
    '.why_not_native != ""' '.ack == "exclusive"' '.why_strict == ""' '.writes_native == 0' \
    ".inode == $(stat -c %i mnt/db)"
expect_ok by status mnt/db
out_has '^  engine +logged \(not native: .+\)$'
out_has '^  acknowledged +exclusive$'
# Another writer makes it strict, and it is said who.
exec 7<>mnt/db
expect_ok by --json status mnt/db
json_holds '.ack == "strict"' '.why_strict != ""'
expect_ok by --json write mnt/db --offset 0 --from one
json_holds '.ack == "strict"'
expect_ok by status mnt/db
out_has '^  acknowledged +strict \(.+\)$'
exec 7>&-
exclusive() { by --json status mnt/db | jq -e '.ack == "exclusive"' >/dev/null; }
wait_for exclusive

expect_ok by stats
json_holds '.target == "mnt"' '.writes.logged.count == 3' '.writes.plain.count == 1' \
    '.writes.all.bytes == 65536' '.reads.bytes == 1048576' '.errors == {}' '(.frozen or .poisoned) | not'
expect_ok by stats --prometheus
prometheus "$OUT"
out_has '^atomic4_writes_total\{engine="logged"\} 3$'

expect_ok by ping -c 3 -i 0
out_has "^PING $socket \(mounted\)\$"
is "$(grep -c '^answer [1-3]: time=[0-9.]* us$' "$OUT")" 3
out_has '^3 requests, 3 answers$'
out_has '^rtt min/avg/max/mdev = [0-9.]+/[0-9.]+/[0-9.]+/[0-9.]+ us$'
expect_ok by --json ping -c 2
json_holds '.count == 2' '.target == "mounted"' '.min_us > 0' '.min_us <= .avg_us' \
    '.avg_us <= .max_us' '.mdev_us >= 0' '.socket | endswith("/sock")'

# The example that README.md shows.
expect_ok client_example "$socket" mnt/db
out_has '^16384 bytes are durable; pages of 4096 to [0-9]+ bytes are possible$'
slice mnt/db 0 16384 | cmp - <(zeros 16K | tr '\0' x) || die "the example's bytes aren't there"

# And the one without a library.
expect_ok python3 "$ATOMIC4_SOURCE/daemon/example.py" "$socket" mnt/db
out_has '^version 1, volume [0-9a-f]{32}, blocks of 4096 bytes$'
out_has "^inode $(stat -c %i mnt/db): 16384 bytes are durable, all or nothing: logged (exclusive|strict)\$"
out_has '^read back: the same$'
by read mnt/db --offset 0 --length 16K >told
slice mnt/db 0 16384 | cmp - told || die "the mounted file has other bytes"
cmp -s told <(zeros 16K | tr '\0' x) && die "it wrote nothing"

# --- freezing ---------------------------------------------------------------------------------
expect_ok by freeze
out_has "^$socket: frozen: writes wait until atomic4ctl thaw\$"
expect_ok by stats
json_holds .frozen
by write mnt/db --offset 0 --from two >frozen.out &
writer=$!
waits() { by stats | jq -e '.clients == 2 and .open_handles == 1' >/dev/null; }
wait_for waits
slice mnt/db 0 16384 | cmp -s - two && die "a write in a frozen volume"
expect_ok by --json thaw
json_holds '.frozen | not' '.socket != ""'
wait $writer
slice mnt/db 0 16384 | cmp - two || die "the write that waited isn't there"
expect_ok by --json freeze
json_holds .frozen
expect_ok by thaw
out_has "^$socket: thawed\$"

# --- refused ----------------------------------------------------------------------------------
expect_fail 1 'mnt/db: the offset 512 is not a multiple of the length 16384' \
    by write mnt/db --offset 512 --from one
expect_fail 1 'mnt/db: .*not a power of two' by write mnt/db --offset 0 --length 12K --from one
expect_fail 1 'one: has only 16384 of 32768 bytes' by write mnt/db --offset 0 --length 32K --from one
expect_fail 1 'mnt/db: no native atomic writes here: ' \
    by write mnt/db --offset 0 --engine native --from one
expect_fail 1 'mnt/none: No such file' by write mnt/none --offset 0 --from one
expect_fail 1 'mnt: .*[Dd]irectory' by read mnt --offset 0 --length 4K
expect_fail 1 'mnt/.atomic4/log: ' by write mnt/.atomic4/log --offset 0 --from one
expect_fail 1 'one: .* is not on this volume' by write one --offset 0 --from two
lsattr mnt/journaled | grep -q '^[^ ]*j' || die "it isn't chattr +j"
expect_fail 1 'mnt/journaled: .*data=journal mode \(chattr \+j\)' \
    by write mnt/journaled --offset 0 --from one
cmp mnt/journaled <(zeros 64K) || die "it was written"
mkfifo mnt/fifo
expect_fail 1 'mnt/fifo: ' by read mnt/fifo --offset 0 --length 4K
expect_fail 1 "connecting to $T/none: .*no daemon listens there; start atomic4d" \
    atomic4ctl --socket "$T/none" ping
expect_fail 1 'too long' atomic4ctl --socket "/$(printf 'x%.0s' $(seq 200))" ping
# Who may connect, and what they may do with which file.
chmod 711 "$T"
expect_fail 1 "connecting to $socket: Permission denied" as_nobody atomic4ctl --socket "$socket" ping
chmod 666 "$socket"
expect_ok as_nobody atomic4ctl --socket "$socket" --json ping -c 1
expect_ok as_nobody atomic4ctl --socket "$socket" read mnt/db --offset 0 --length 16K
same_bytes two "$OUT"
expect_fail 1 'mnt/db: Permission denied' \
    as_nobody atomic4ctl --socket "$socket" write "mnt/db" --offset 0 --from /dev/null
expect_fail 1 'only root may' as_nobody atomic4ctl --socket "$socket" freeze
chmod 646 mnt/db
pattern nobody 16K >mine && chmod 644 mine
expect_ok as_nobody atomic4ctl --socket "$socket" write mnt/db --offset 32K --from mine
slice mnt/db 32768 16384 | cmp - mine || die "nobody's bytes aren't there"
chmod 700 "$T" && chmod 755 "$T"

# Usage: which volume is meant is said once.
expect_fail 2 'excludes' atomic4ctl --socket "$socket" -d vol.img status /db
expect_fail 2 'either --socket or a PATH' atomic4ctl ping
expect_fail 2 'either --socket or a PATH' by stats mnt
expect_fail 2 'a daemon is found by its --socket or a PATH, not -d' atomic4ctl -d vol.img stats mnt
expect_fail 2 'ls works on an unmounted volume' by ls
expect_fail 2 'info works on an unmounted volume' by info vol.img
expect_fail 2 '-d IMAGE.DEVICE is required' atomic4ctl map /db
expect_fail 2 'count' by ping -c 0
expect_fail 2 'interval' by ping -i -1

# A second one: on the volume, and at the socket.
expect_fail 1 'another atomic4d runs on this volume' atomic4d mnt --socket "$T/second"
expect_fail 1 "$socket: another daemon listens there" atomic4d owned.img --socket "$socket"
capture atomic4d owned.img --foreground --socket "$T/one"
is "$STATUS" 1
err_has "$T/one: exists and is no socket"
expect_fail 2 'engine' atomic4d mnt --engine best
expect_fail 2 'TARGET is required' atomic4d
expect_fail 1 'is not the top directory of a mounted ext4' atomic4d "$T"
expect_fail 1 'none: No such file' atomic4d "$T/none"

stop
prometheus stats.prom
grep -q '^atomic4_writes_total{engine="logged"} 7$' stats.prom || die "not all writes are in --stats"
umount mnt
check_clean vol.img

# --- in the background, at its default place ----------------------------------------------------
mount_image vol.img mnt
default=/run/atomic4/$(blkid -o value -s UUID "$(findmnt -no SOURCE mnt)").sock
expect_ok atomic4d --pid-file daemon.pid --log-level warn mnt
UNDO+=("kill $(cat daemon.pid)")
out_is_empty
[ -S "$default" ] || die "no socket at $default"
# Found by any path on the volume.
expect_ok atomic4ctl ping mnt -c 1
out_has "^PING $default "
expect_ok atomic4ctl stats mnt/db
json_holds '.writes.all.count == 0'
expect_ok atomic4ctl --json write mnt/db --offset 0 --from one
expect_ok atomic4ctl read mnt/db --offset 0 --length 16K
same_bytes one "$OUT"
expect_ok atomic4ctl --json status mnt/db
expect_ok atomic4ctl freeze mnt
expect_ok atomic4ctl thaw mnt
expect_fail 1 'target is busy' bash -c 'umount mnt 2>&1 | sed "s/^/atomic4ctl: /" >&2; exit 1'
keeper=$(cat daemon.pid)
kill "$keeper"
gone() { ! kill -0 "$keeper" 2>/dev/null; }
wait_for gone
[ ! -e "$default" ] && [ ! -e daemon.pid ] || die "socket or pid file are still there"
expect_fail 1 "connecting to $default: .*no daemon listens there" atomic4ctl status mnt/db
expect_fail 1 "/proc/self/status: lies on no mounted ext4" \
    atomic4ctl write /proc/self/status --offset 0 --from one
umount mnt

# --- an unmounted image ---------------------------------------------------------------------------
start owned.img
expect_ok by ping -c 1
out_has "\(owned\)\$"
expect_ok by --json write /db --offset 64K --from one
json_holds '.engine == "logged"' '.ack == "exclusive"'
expect_ok by read /db --offset 64K --length 16K
same_bytes one "$OUT"
expect_ok by --json status /db
json_holds '.unit == 16384' '.size == 1048576'
expect_fail 1 '/none: ' by status /none
expect_fail 1 '/journaled: .*data=journal mode' by write /journaled --offset 0 --from one
expect_fail 1 '/db: no native atomic writes here' by write /db --offset 0 --engine native --from one
expect_fail 1 'owned.img.* (in use|locked)' atomic4ctl -d owned.img ls
stop
{ zeros 64K && cat one && zeros 944K; } >want
kernel_roundtrip owned.img db=want

# --- the engine of files that don't ask for one ---------------------------------------------------
start --engine native owned.img
expect_fail 1 '/db: no native atomic writes here' by write /db --offset 0 --from one
expect_ok by write /db --offset 0 --engine logged --from one
stop
