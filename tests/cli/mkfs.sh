# mkfs.atomic4: defaults, mke2fs's options, refusals, and what it leaves when something fails.
. "$(dirname "$0")/lib.sh"
need_program jq strace sfdisk mkfs.xfs

# --- defaults ---------------------------------------------------------------------------------
expect_ok mkfs.atomic4 new.img 64M
out_has '^new.img: atomic4 enabled, unit 16K, redo log 1M$'
err_has 'warning: .*no hardware atomic writes.*logged engine'
err_has 'warning: .*type atomic4 .or pass number 0., such as: UUID=.* atomic4 defaults 0 2$'
is "$(stat -c %s new.img)" $((64 << 20))
expect_ok atomic4ctl --json info new.img
json_holds .atomic4 '.version == 1' '.unit == 16384' '.log.size == 1048576' \
    '.log.live_records == 0' '.needs_replay | not' '.gate.primary' \
    '.gate.backups > 0' '.gate.backups == .gate.backups_with_gate'
check_clean new.img
e2fsck_clean new.img

# The log: 1/64 of the volume, within 8 and 256 MiB from 512 MiB on.
for row in 16M:256K 128M:2M 512M:8M 1G:16M 40G:256M; do
    rm -f size.img
    expect_ok mkfs.atomic4 size.img "${row%:*}"
    out_has "redo log ${row#*:}\$"
    rm size.img
done

# --- -u, -l -----------------------------------------------------------------------------------
make_image unit.img 64M -u 64K -l 2M
expect_ok atomic4ctl --json info unit.img
json_holds '.unit == 65536' '.log.size == 2097152'
expect_ok atomic4ctl -d unit.img --json prealloc /f --size 64K
json_holds '.unit == 65536' '.units == 1'
make_image unit.img 64M --unit 4MiB --log-size 512K
expect_ok atomic4ctl --json info unit.img
json_holds '.unit == 4194304' '.log.size == 524288'
rm -f none.img
expect_fail 1 'power of two from the block size to 4M' mkfs.atomic4 -u 12K none.img 64M
expect_fail 1 'power of two' mkfs.atomic4 -u 8M none.img 64M
expect_fail 1 'power of two' mkfs.atomic4 -u 0 none.img 64M
expect_fail 1 'power of two' mkfs.atomic4 -u 2K -b 4096 none.img 64M
expect_fail 1 'log size 100000: want a multiple' mkfs.atomic4 -l 100000 none.img 64M
expect_fail 1 'log size .*: want a multiple of .*at least' mkfs.atomic4 -l 0 none.img 64M
expect_fail 2 "unknown suffix 'X'" mkfs.atomic4 -u 16X none.img 64M
expect_fail 2 "'-1'" mkfs.atomic4 -l -1 none.img 64M
[ ! -e none.img ] || die "a refused mkfs made a file"

# --- mke2fs's own options arrive ------------------------------------------------------------------
superblock() {
    dumpe2fs -h "$1" 2>/dev/null | sed -n "s/^$2:[[:space:]]*//p"
}
make_image opt.img 64M -L label-x -U 11111111-2222-3333-4444-555555555555 -I 512 -N 2048 -m 7 -g 8192 -G 4 \
    -E stride=8,stripe-width=16 -O ^has_journal,^resize_inode -T news -r 1
is "$(superblock opt.img 'Filesystem volume name')" label-x
is "$(superblock opt.img 'Filesystem UUID')" 11111111-2222-3333-4444-555555555555
is "$(superblock opt.img 'Inode size')" 512
is "$(superblock opt.img 'Inode count')" 2048
is "$(superblock opt.img 'Blocks per group')" 8192
is "$(superblock opt.img 'Flex block group size')" 4
is "$(superblock opt.img 'RAID stride')" 8
is "$(superblock opt.img 'Reserved block count')" $((16384 * 7 / 100))
! superblock opt.img 'Filesystem features' | grep -Eq 'has_journal|resize_inode' || die "-O was lost"
check_clean opt.img
e2fsck_clean opt.img
make_image opt.img 64M -i 65536 -J size=4
is "$(superblock opt.img 'Inode count')" 1024
is "$(superblock opt.img 'Total journal blocks')" 1024
for size in 1024 2048 4096; do
    rm -f opt.img
    expect_ok mkfs.atomic4 -q -b $size opt.img 64M
    expect_ok atomic4ctl --json info opt.img
    json_holds ".block_size == $size" .atomic4
    check_clean opt.img
    e2fsck_clean opt.img
done

# --- -q, -v, -V, -n, --help ----------------------------------------------------------------------
rm -f q.img
expect_ok mkfs.atomic4 -q q.img 64M
out_is_empty
err_is_empty
rm -f q.img
expect_ok mkfs.atomic4 -v q.img 64M
out_has 'fs_types for mke2fs.conf'
expect_ok mkfs.atomic4 -V
out_has '^mkfs.atomic4 [0-9]'
err_has '^mke2fs 1\.'
expect_ok mkfs.atomic4 --help
out_has '^Usage: mkfs.atomic4'
err_is_empty

expect_fail 1 'none.img: does not exist .*-n creates nothing' mkfs.atomic4 -n none.img 64M
[ ! -e none.img ] || die "-n made a file"
truncate -s 64M blank.img
changes_nothing blank.img mkfs.atomic4 -n blank.img
is "$STATUS" 0
out_has 'would then enable atomic4, unit 16K, redo log 1M; nothing was changed$'
changes_nothing q.img mkfs.atomic4 -n -F q.img
is "$STATUS" 0
changes_nothing q.img mkfs.atomic4 -n q.img
is "$STATUS" 1

# --- usage ----------------------------------------------------------------------------------------
expect_fail 2 'DEVICE is required' mkfs.atomic4
expect_fail 2 '' mkfs.atomic4 --no-such-option x.img
expect_fail 2 '' mkfs.atomic4 x.img 64M more

# --- where it may not format ----------------------------------------------------------------------
expect_fail 1 'none.img: does not exist: .*give its SIZE' mkfs.atomic4 none.img
expect_status 1 mkfs.atomic4 -q none/x.img 64M
err_has '^mkfs.atomic4: mke2fs failed with exit status 1: atomic4 was not enabled$'
: >empty.img
expect_fail 1 'empty.img: is empty: give .* SIZE' mkfs.atomic4 empty.img
mkdir dir
expect_fail 1 'neither a block device nor a regular file' mkfs.atomic4 dir 64M
expect_fail 1 'neither a block device nor a regular file' mkfs.atomic4 /dev/null 64M
mkfifo fifo
expect_fail 1 'neither a block device nor a regular file' mkfs.atomic4 fifo 64M

refuses_signature() {
    changes_nothing "$1" mkfs.atomic4 "$1"
    is "$STATUS" 1
    out_is_empty
    err_has "^mkfs.atomic4: $1: holds $2 already: -F overwrites it\$"
    is "$(wc -l <"$ERR")" 1
    expect_ok mkfs.atomic4 -F "$1"
    expect_ok atomic4ctl --json info "$1"
    json_holds .atomic4
}
make_ext4 sig.img 64M
refuses_signature sig.img ext4
changes_nothing sig.img mkfs.atomic4 sig.img # our own
is "$STATUS" 1
rm -f sig.img
truncate -s 400M sig.img
mkfs.xfs -q sig.img
refuses_signature sig.img xfs
for table in dos gpt; do
    rm -f sig.img
    truncate -s 64M sig.img
    printf 'label: %s\nstart=2048,size=65536\n' $table | sfdisk -q sig.img
    refuses_signature sig.img $table
done
make_image held.img 64M
exec 9<held.img
flock 9
expect_fail 1 'held.img is in use by another process' mkfs.atomic4 -F held.img
exec 9<&-

# --- features that atomic4 has no support for: refused before anything is written -----------------
truncate -s 64M blank.img
for feature in quota journal_dev shared_blocks dirdata read-only ^extent ^extents -extent \
    ^ext_attr none none,extent Quota 64bit,quota; do
    changes_nothing blank.img mkfs.atomic4 -O $feature blank.img
    is "$STATUS" 1
    is "$(wc -l <"$ERR")" 1
    err_has '^mkfs.atomic4: -O .*: atomic4 (does not support it|needs (extents|extended attributes))$'
done
for row in "-r 0|needs revision 1" "-E offset=1048576|give the partition, or a loop device" \
    "-E stride=8,offset=4096|give the partition" "-J size=4,device=/dev/none|the journal on the volume"; do
    # shellcheck disable=SC2086
    changes_nothing blank.img mkfs.atomic4 ${row%|*} blank.img
    is "$STATUS" 1
    is "$(wc -l <"$ERR")" 1
    err_has "^mkfs.atomic4: ${row%% *} .*: atomic4 .*${row#*|}"
done
for features in project none,extent,ext_attr ^extent,extents quota,^quota bigalloc inline_data casefold; do
    make_image wish.img 64M -O $features
    expect_ok atomic4ctl -d wish.img prealloc /f --size 64K
    check_clean wish.img
    e2fsck_clean wish.img
done
expect_fail 1 'atomic4 does not support' mkfs.atomic4 -O bigalloc,quota -C 65536 none.img 64M
[ ! -e none.img ] || die "a refused mkfs made a file"

# --- layouts with sizes of their own ----------------------------------------------------------------
make_image wish.img 64M -O bigalloc -C 32768
expect_ok atomic4ctl -d wish.img prealloc /f --size 100K --unit 16K
check_clean wish.img
e2fsck_clean wish.img
# mke2fs wants -F for blocks larger than a page. The unit is one block, if none is given.
rm wish.img
expect_ok mkfs.atomic4 -q -F -b 65536 wish.img 256M
expect_ok atomic4ctl -d wish.img prealloc /f --size 8M --unit 4M
expect_ok atomic4ctl -d wish.img prealloc /g --size 128K
check_clean wish.img
e2fsck_clean wish.img

# --- mke2fs fails, or is interrupted: a stand-in comes first in PATH --------------------------------
mkdir fake
cat >fake/mke2fs <<'FAKE'
#!/bin/bash
case ${FAKE_MKE2FS:-} in
fail)
    echo "mke2fs: this one always fails" >&2
    exit 3
    ;;
pipe)
    kill -PIPE $$
    ;;
slow)
    echo begun >"$FAKE_FIFO"
    read -r _ <"$FAKE_FIFO.go"
    ;;
stubborn)
    trap '' INT
    echo begun >"$FAKE_FIFO"
    read -r _ <"$FAKE_FIFO.go"
    exec "$REAL_MKE2FS" "$@"
    ;;
esac
FAKE
chmod +x fake/mke2fs
REAL_MKE2FS=$(command -v mke2fs)
export REAL_MKE2FS

expect_status 1 env PATH="$T/fake:$PATH" FAKE_MKE2FS=fail mkfs.atomic4 none.img 64M
err_has '^mkfs.atomic4: mke2fs failed with exit status 3: atomic4 was not enabled$'
out_is_empty

expect_status 1 env PATH="$T/fake:$PATH" FAKE_MKE2FS=pipe mkfs.atomic4 none.img 64M
err_has '^mkfs.atomic4: mke2fs was killed by SIGPIPE; none.img may hold an incomplete filesystem: format it again$'

# Interrupted as from a terminal: the whole process group gets SIGINT. What mkfs said is then in
# int.out and int.err, its exit status in int.status.
interrupted() {
    rm -f fifo fifo.go fifo.done int.img
    mkfifo fifo fifo.go fifo.done
    FAKE_FIFO=$T/fifo FAKE_MKE2FS=$1 PATH=$T/fake:$PATH setsid --fork bash -c '
        trap : INT
        echo $$ >int.pid
        status=0
        mkfs.atomic4 -q int.img 64M >int.out 2>int.err || status=$?
        echo $status >int.status
        echo done >fifo.done'
    read -r _ <fifo
    kill -INT -- "-$(cat int.pid)"
    [ "$1" = slow ] || echo go >fifo.go
    read -r _ <fifo.done
}
interrupted slow
is "$(cat int.status)" 1
is "$(cat int.err)" \
    "mkfs.atomic4: mke2fs was killed by SIGINT; int.img may hold an incomplete filesystem: format it again"
interrupted stubborn # it finishes, and so do we
is "$(cat int.status)" 0
is "$(cat int.err)" ""
check_clean int.img
e2fsck_clean int.img

# --- our part fails: a plain, clean ext4 is left ----------------------------------------------------
# Neither in the primary superblock nor in the copies.
has_no_gate() {
    expect_ok atomic4ctl --json info "$1"
    json_holds '.atomic4 | not' '.gate.backups_with_gate == 0' '.needs_replay | not'
}
leaves_plain_ext4() {
    rm -f plain.img
    expect_fail 1 "$1; plain.img holds a plain ext4 without atomic4\$" "${@:2}"
    has_no_gate plain.img
    is "$(debugfs -R 'ls -p /' plain.img 2>/dev/null | cut -d/ -f6 | sort | xargs)" ". .. lost+found"
    e2fsck_clean plain.img
}
truncate -s 64M blank.img
changes_nothing blank.img mkfs.atomic4 -q -l 40M blank.img # known before, the size being known
err_has '^mkfs.atomic4: log size .*: more than half of the volume'
is "$(wc -l <"$ERR")" 1
leaves_plain_ext4 'log size .*: more than half of the volume.*' \
    mkfs.atomic4 -q -b 4096 -l 40M plain.img 64M
leaves_plain_ext4 'no room for a redo log of .* bytes: free some space, or give a smaller log size' \
    mkfs.atomic4 -q -b 4096 -l 32M -J size=28 plain.img 64M
# Each write of ours fails in turn, the last being the gate bit in the primary superblock. mke2fs
# is another process, which strace doesn't follow. strace counts each system call by itself.
rm -f plain.img
strace -qq -o trace -e trace=pwrite64,pwritev2,fdatasync \
    mkfs.atomic4 -q -b 4096 plain.img 64M 2>/dev/null
for call in pwrite64 pwritev2 fdatasync; do
    calls=$(grep -c "^$call" trace)
    for ((when = 1; when <= calls; ++when)); do
        rm -f plain.img
        capture strace -qq -o /dev/null -e trace=$call -e "inject=$call:error=EIO:when=$when" \
            mkfs.atomic4 -q -b 4096 plain.img 64M
        is "$STATUS" 1
        is "$(wc -l <"$ERR")" 1
        err_has '^mkfs.atomic4: .*Input/output error'
        err_has '; plain.img holds a plain ext4 without atomic4$'
        has_no_gate plain.img
        e2fsck_clean plain.img
    done
done
