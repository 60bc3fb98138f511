# fsck.atomic4 as fsck(8) and people run it: options, exit statuses, who may be checked, what is
# missing.
. "$(dirname "$0")/lib.sh"
need_root
need_program script python3 strace
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }

make_image sound.img 64M
expect_ok atomic4ctl -d sound.img prealloc /db --size 1M --unit 16K
copy_image sound.img vol.img

# --- a clean volume -----------------------------------------------------------------------------
changes_nothing vol.img fsck.atomic4 -p vol.img
is "$STATUS" 0
out_has '^vol.img: clean, [0-9]+/[0-9]+ files, [0-9]+/[0-9]+ blocks$'
expect_ok fsck.atomic4 -a vol.img
out_has '^vol.img: clean, '
expect_ok fsck.atomic4 -n vol.img
changes_nothing vol.img fsck.atomic4 -fn vol.img
is "$STATUS" 0
out_has '^Pass 5: '
expect_ok fsck.atomic4 -f -y -v vol.img
out_has 'inodes used'
expect_ok fsck.atomic4 -fp -C 3 vol.img 3>progress
grep -Eq '^[1-5] [0-9]+ [0-9]+ ' progress || die "no progress of e2fsck"
grep -Eq '^0 [0-9]+ [0-9]+ vol.img$' progress || die "no progress of our passes"
expect_ok fsck.atomic4 -fp -C 0 vol.img
out_has 'vol.img: atomic files [0-9]+\.[0-9]%'
expect_fail 8 '-C 9: Bad file descriptor' fsck.atomic4 -fp -C 9 vol.img
expect_fail 16 '-C' fsck.atomic4 -fp -C x vol.img
# A reader that has gone ends e2fsck, but not us.
capture fsck.atomic4 -fp -C 3 vol.img 3> >(exit 0)
[ "$STATUS" = 0 ] || { is "$STATUS" 8 && out_has 'e2fsck was ended by signal 13'; }
cp vol.img ./-d.img
expect_ok fsck.atomic4 -fp -- -d.img
truncate -s 32M small.img
expect_ok mkfs.atomic4 -q -b 1024 small.img
expect_status 1 fsck.atomic4 -fy -b 8193 -B 1024 small.img
check_clean small.img
e2fsck_clean small.img
expect_ok fsck.atomic4 -V
out_has '^fsck.atomic4 [0-9]'

# Clean by its state only: as e2fsck -p sees it.
for damage in "set_bg 0 checksum 0" "ssv free_blocks_count 99999999"; do
    copy_image sound.img vol.img
    debug vol.img "$damage"
    capture fsck.atomic4 -p vol.img
    [ "$STATUS" -le 1 ] || { show_output && die "exit status $STATUS"; }  # e2fsck's own is 0 for the first
    out_lacks 'clean, '
    expect_ok fsck.atomic4 -fp vol.img
done
# What e2fsck rejects is not acted on.
copy_image sound.img vol.img
debug vol.img "ssv first_ino 1000000"
changes_nothing vol.img fsck.atomic4 -fp vol.img
is "$STATUS" 4
# Not supported is not damaged: no file is moved for it.
copy_image sound.img vol.img
tune2fs -O quota vol.img >/dev/null 2>&1 </dev/null
changes_nothing vol.img fsck.atomic4 -fy vol.img
is "$STATUS" 8
err_has 'the volume has the feature quota: .*: clear it with tune2fs -O .quota'
copy_image sound.img vol.img

# --- usage ----------------------------------------------------------------------------------------
expect_fail 16 'only one of -p' fsck.atomic4 -p -y vol.img
expect_fail 16 'DEVICE' fsck.atomic4 -p
expect_fail 16 'option' fsck.atomic4 --no-such-option vol.img
expect_fail 8 'none.img: No such file' fsck.atomic4 -p none.img
for options in "-E no_such_option" "-b x"; do
    # shellcheck disable=SC2086
    expect_status 16 fsck.atomic4 -fy $options vol.img
done
exec 7<>vol.img
capture fsck.atomic4 -fy /dev/fd/7
is "$STATUS" 8
err_has 'leads past a guarded view: give the real path'
exec 7>&-
expect_fail 8 'needs a terminal' fsck.atomic4 vol.img </dev/null
mkfifo pipe
expect_fail 8 'pipe' fsck.atomic4 -p pipe
truncate -s 1M empty.img
capture fsck.atomic4 -p empty.img
is "$STATUS" 8

# --- a plain ext4 is e2fsck's ---------------------------------------------------------------------
truncate -s 16M plain.img
mke2fs -q -t ext4 plain.img
export E2FSCK_TIME=1700000000  # the same for both
for options in -p -n -fn -fy; do
    copy_image plain.img a.img
    copy_image plain.img b.img
    debug a.img "clri <2>"
    debug b.img "clri <2>"
    capture e2fsck $options a.img
    want=$STATUS
    cp "$OUT" want.out
    capture fsck.atomic4 $options b.img
    is "$STATUS" "$want"
    diff <(sed 's/a\.img/X/g' want.out) <(sed 's/b\.img/X/g' "$OUT") || die "another output than e2fsck's"
    cmp a.img b.img
done
unset E2FSCK_TIME

# With a journal of its own, which -j names.
truncate -s 16M journal.img
mke2fs -q -b 1024 -O journal_dev journal.img
attach journal journal.img
rm plain.img
truncate -s 16M plain.img
mke2fs -q -t ext4 -b 1024 -J device="$journal" plain.img
for program in e2fsck fsck.atomic4; do
    expect_ok $program -fn -j "$journal" plain.img
done

# --- questions ------------------------------------------------------------------------------------
copy_image sound.img vol.img
db=$(debugfs -R "stat /db" vol.img 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p')
debug vol.img "sif <$db> mode 0"
answer() { printf "$1" | script -qec "fsck.atomic4 -f vol.img" /dev/null >said || STATUS=$?; }
remember vol.img
STATUS=0
answer 'n\nn\nn\nn\nn\nn\n'
[ $((STATUS & 4)) = 4 ] || die "answered no: exit status $STATUS"
grep -q 'Make it one? (y/n)' said || die "it wasn't asked"
STATUS=0
answer 'y\ny\ny\n'
is "$STATUS" 1
check_clean vol.img

# --- what -p may not decide -----------------------------------------------------------------------
copy_image sound.img vol.img
debug vol.img "sif <$db> mode 0"
expect_status 4 fsck.atomic4 -fp vol.img
out_has '^vol.img: #22 /db: '
out_has 'UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY'
# It isn't taken for clean now; else nothing has changed.
changes_nothing vol.img fsck.atomic4 -p vol.img
is "$STATUS" 4

# --- mounted --------------------------------------------------------------------------------------
copy_image sound.img vol.img
attach loop vol.img
mkdir mnt
mount "$loop" mnt
UNDO+=("umount '$T/mnt'")
expect_fail 8 'mounted' fsck.atomic4 -p "$loop"
expect_fail 8 'mounted' fsck.atomic4 -fy "$loop"
capture fsck.atomic4 -fn "$loop"
err_has 'warning: .* is mounted on '
umount mnt
# e2fsck's mount namespace has had a copy of the mount, and goes a moment later.
nobody_has_it() { python3 -c 'import os, sys; os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)' "$loop" 2>/dev/null; }
wait_for nobody_has_it
mount -o ro "$loop" mnt
expect_fail 8 'mounted' fsck.atomic4 -fy "$loop"
umount mnt
wait_for nobody_has_it
# The root, read-only as at boot: on the volume itself are only the places for the host's programs.
for directory in usr bin sbin lib lib64 etc proc dev tmp programs; do debug vol.img "mkdir $directory"; done
debug vol.img "sif <$db> links_count 7"
mount -o ro "$loop" mnt
as_root() {
    unshare -m --propagation slave sh -euc '
        for directory in usr bin sbin lib lib64 etc proc dev; do
            [ ! -e /$directory ] || mount --rbind /$directory mnt/$directory
        done
        mount --bind "$1" mnt/programs
        mount -t tmpfs none mnt/tmp
        shift
        exec chroot mnt /programs/fsck.atomic4 "$@"' sh "$(dirname "$(command -v fsck.atomic4)")" "$@"
}
expect_status 3 as_root -fy "$loop"
out_has 'REBOOT SYSTEM'
umount mnt
wait_for nobody_has_it
expect_ok fsck.atomic4 -fp "$loop"
check_clean "$loop"

# --- as fsck(8) runs it -----------------------------------------------------------------------------
echo "$loop /nowhere atomic4 defaults 0 2" >fstab
expect_ok env FSTAB_FILE="$T/fstab" fsck -a "$loop"
out_has "^$loop: clean, "
debug vol.img "sif <$db> links_count 7"
expect_status 1 env FSTAB_FILE="$T/fstab" fsck -C -a -f "$loop"
check_clean "$loop"

# --- a daemon has it ------------------------------------------------------------------------------
copy_image sound.img owned.img
atomic4d --foreground --socket "$T/sock" owned.img >daemon.out 2>&1 &
DAEMON=$!
UNDO+=("kill $DAEMON; wait $DAEMON")
answers() { [ -S "$T/sock" ] && atomic4ctl --socket "$T/sock" ping -c 1 >/dev/null 2>&1; }
wait_for answers
expect_fail 8 'owned.img' fsck.atomic4 -p owned.img
kill $DAEMON
wait $DAEMON

copy_image sound.img free.img
# --- what is missing --------------------------------------------------------------------------------
mkdir tools
for program in sh bash; do ln -s "$(command -v $program)" tools/; done
fsck=$(command -v fsck.atomic4)
printf '#!/bin/sh\necho "e2fsck 1.41.3 (12-Oct-2008)" >&2\n' >tools/e2fsck
chmod +x tools/e2fsck
expect_fail 8 'e2fsck is too old' env PATH="$T/tools" "$fsck" -fp free.img
# Its own mount namespace, in which the one in the system's directories can't be seen.
without() { unshare -m --propagation slave sh -c 'mount --bind /dev/null "$1" && shift && exec "$@"' sh "$@"; }
expect_fail 8 'e2fsck' without "$(readlink -f "$(command -v e2fsck)")" "$fsck" -fp free.img
without_fuse() { unshare -m --propagation slave sh -c 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"' sh "$@"; }
expect_fail 8 '/dev/fuse' without_fuse "$fsck" -fp free.img
# Which nobody needs for a volume that is clean.
expect_ok without_fuse "$fsck" -p free.img

# Interrupted: e2fsck ends, and the volume is as good as before.
printf '#!/bin/sh\n[ "$1" != -V ] || exec %s -V\nkill -INT $PPID\nexec tail -f /dev/null\n' "$(command -v e2fsck)" >tools/e2fsck
ln -s "$(command -v tail)" tools/
expect_status 32 env PATH="$T/tools" "$fsck" -fy free.img
check_clean free.img
grep -q "atomic4-guard" /proc/self/mounts && die "a view is left" || true

# --- an e2fsck that doesn't get to the end in one run -------------------------------------------------
# leaves_something RUNS: the first runs of e2fsck exit 4, whatever they do.
leaves_something() {
    rm -f e2fsck_ran
    cat >tools/e2fsck <<END
#!/bin/sh
[ "\$1" != -V ] || exec $real_e2fsck -V
echo >>$T/e2fsck_ran
$real_e2fsck "\$@"
status=\$?
[ \$(wc -l <$T/e2fsck_ran) -gt $1 ] || exit 4
exit \$status
END
    chmod +x tools/e2fsck
}
with_tools() { env PATH="$T/tools:$PATH" "$@"; }
real_e2fsck=$(command -v e2fsck)
leaves_something 1
expect_ok with_tools fsck.atomic4 -fy free.img
out_has 'e2fsck left something uncorrected: it runs once more'
is "$(wc -l <e2fsck_ran)" 2
leaves_something 9
expect_status 4 with_tools fsck.atomic4 -fy free.img
is "$(wc -l <e2fsck_ran)" 2
leaves_something 1
expect_status 4 with_tools fsck.atomic4 -fp free.img
is "$(wc -l <e2fsck_ran)" 1
check_clean free.img

# An interruption during our own passes, at any read or write: it stops there, or had not far to go.
copy_image sound.img broken.img
debug broken.img "sif <$db> generation 0"
debug broken.img "write free.img other"
stopped=0
for call in pread64 pwrite64; do
    for ((when = 1; when <= 2000; when += when < 20 ? 3 : when / 3)); do
        copy_image broken.img vol.img
        capture strace -qq -o /dev/null -e trace=$call -e "inject=$call:signal=INT:when=$when" \
            fsck.atomic4 -fy vol.img
        case $STATUS in
            0 | 1 | 130) ;;  # done, or not begun
            32 | 33) stopped=$((stopped + 1)) ;;
            *) show_output && die "SIGINT at $call $when: exit status $STATUS" ;;
        esac
        # Who comes next sees that there is something to be done.
        [ "$STATUS" -lt 32 ] || [ "$STATUS" = 130 ] || grep -q 'interrupted: what is left' "$OUT" || die "nothing is said of it"
        capture fsck.atomic4 -fy vol.img
        [ "$STATUS" -le 1 ] || { show_output && die "after SIGINT at $call $when: $STATUS"; }
        check_clean vol.img
        expect_ok fsck.atomic4 -fp vol.img
    done
done
[ $stopped -ge 5 ] || die "stopped $stopped times only"

# Whoever has told its children not to be waited for gets the status all the same.
copy_image broken.img vol.img
expect_status 1 python3 -c 'import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])' fsck.atomic4 -fy vol.img
check_clean vol.img
