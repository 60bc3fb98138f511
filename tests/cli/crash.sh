# kill -9 half-way through a logged write, and what comes after: stock tools are kept out, nothing
# old is read, recover makes the write whole; conflicts with writes by the kernel are the user's to
# decide; files that are gone; a corrupt log.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq strace

pattern new 8K >new
on() { atomic4ctl -d vol.img "$@"; }

make_image base.img 64M
file_in_two_runs base.img /db
cat "$T/.half1" "$T/.half2" >old
kernel_roundtrip base.img db=old
copy_image base.img crashed.img
killed_half_way crashed.img /db new

# --- half of it is in place, the rest is not -----------------------------------------------------
copy_image crashed.img vol.img
{ slice new 0 4K && slice old 4K 4K; } >torn
copy_image vol.img peek.img
clear_needs_replay peek.img
debugfs -R "dump /db $T/found" peek.img 2>/dev/null
same_bytes torn found

is_refused_by_stock_tools vol.img
has_feature vol.img FEATURE_I28 || die "the needs-replay bit is not set"
remember vol.img
expect_ok atomic4ctl --json info vol.img
json_holds .needs_replay '.log.live_records == 1' '.log.end == "clean"'
expect_ok atomic4ctl info vol.img
out_has '^  needs replay +yes: run atomic4ctl recover$'
out_has '^  redo log .* 1 live record, end clean$'
expect_ok on --json status /db
json_holds '.live_records == 1'
expect_ok on status /db
out_has '^  redo log +1 live record: run atomic4ctl recover$'
expect_status 1 on --json check
json_holds '.clean | not' '.findings | map(.number) == [12]'
expect_fail 1 'vol.img: the redo log holds 1 record to replay: run atomic4ctl recover first' \
    on read /db --offset 0 --length 8K
unchanged vol.img

# --- recover ---------------------------------------------------------------------------------------
expect_ok atomic4ctl recover vol.img
out_has '^vol.img: 1 record replayed \(8192 bytes\)$'
err_is_empty
expect_ok on read /db --offset 0 --length 8K
same_bytes new "$OUT"
changes_nothing vol.img atomic4ctl recover vol.img
is "$STATUS" 0
out_has '^vol.img: 0 records replayed \(0 bytes\)$'
changes_nothing vol.img atomic4ctl --json recover vol.img
json_holds '.records_replayed == 0' .log_emptied '.conflicts == []' '.skipped == []' \
    '.records_discarded == 0' '.log_end == "clean"' '.bytes_replayed == 0' '.device == "vol.img"'
kernel_roundtrip vol.img db=new

copy_image crashed.img vol.img
expect_ok atomic4ctl --json recover vol.img
json_holds '.records_replayed == 1' '.bytes_replayed == 8192' .log_emptied '.conflicts == []'
kernel_roundtrip vol.img db=new

# Without conflicts, --force does the same, and --discard drops the record: the write was never
# acknowledged, but it was half placed, and that is then there to see.
copy_image crashed.img vol.img
expect_ok atomic4ctl recover --force vol.img
kernel_roundtrip vol.img db=new
copy_image crashed.img vol.img
expect_ok atomic4ctl recover --discard vol.img
out_has '^vol.img: 0 records replayed \(0 bytes\), 1 discarded$'
kernel_roundtrip vol.img db=torn

# --- any command that opens it for writing recovers first, and says so ----------------------------
pattern more 4K >more
for command in "-d vol.img prealloc /other --size 64K" "disable --force vol.img" \
    "-d vol.img write /db-between --offset 0 --from more"; do
    copy_image crashed.img vol.img
    # shellcheck disable=SC2086
    expect_ok atomic4ctl $command
    err_has '^atomic4ctl: warning: vol.img: replayed 1 record \(8192 bytes\) that a crash had left$'
    is "$(wc -l <"$ERR")" 1
    kernel_roundtrip vol.img db=new
done
copy_image crashed.img vol.img
expect_fail 1 'vol.img: atomic4 is enabled already' atomic4ctl enable vol.img
expect_ok atomic4ctl recover vol.img

# --- killed at each write, before and after ---------------------------------------------------------
old_or_new() {
    expect_ok atomic4ctl recover vol.img
    expect_ok on read /db --offset 0 --length 8K
    cmp -s "$OUT" old || cmp -s "$OUT" new || die "neither old nor new: $CALL"
    changes_nothing vol.img atomic4ctl recover vol.img
    check_clean vol.img
    e2fsck_clean vol.img
}
at_each_call pwrite64,pwritev2,fdatasync signal=KILL 137 old_or_new base.img \
    atomic4ctl -d vol.img write /db --offset 0 --from new

# --- recovery itself is killed, and run again ---------------------------------------------------------
new_at_last() {
    expect_ok atomic4ctl recover vol.img
    expect_ok on read /db --offset 0 --length 8K
    same_bytes new "$OUT"
    e2fsck_clean vol.img
}
at_each_call pwrite64,pwritev2,fdatasync signal=KILL 137 new_at_last crashed.img \
    atomic4ctl recover vol.img

# --- conflicts: the kernel changed the file before the record was replayed -----------------------------
copy_image crashed.img vol.img
clear_needs_replay vol.img
mount_image vol.img mnt
pattern theirs 8K >theirs
cp theirs mnt/db
umount mnt
copy_image vol.img conflict.img
remember vol.img
expect_status 1 atomic4ctl recover vol.img
err_is_empty
out_has '^vol.img: 0 records replayed \(0 bytes\)$'
out_has '^  conflict: .*was changed after the volume was mounted again'
out_has 'the log is kept: --force .*--discard'
expect_status 1 atomic4ctl --json recover vol.img
json_holds '.log_emptied | not' '.records_replayed == 0' '.conflicts | length == 1' \
    '.conflicts[0] | test("inode [0-9]+ was changed")'
expect_fail 1 'vol.img: record [0-9]+: .*: run atomic4ctl recover \(it explains; --force or --discard decide\)' \
    on write /db --offset 0 --from new
expect_fail 1 'record [0-9]+: .*run atomic4ctl recover' on prealloc /x --size 4K
expect_fail 1 'record' atomic4ctl disable --force vol.img
unchanged vol.img
expect_ok atomic4ctl recover --discard vol.img
out_has '1 discarded$'
kernel_roundtrip vol.img db=theirs
copy_image conflict.img vol.img
expect_ok atomic4ctl recover --force vol.img
out_has '^vol.img: 1 record replayed \(8192 bytes\)$'
out_has '^  conflict, forced: '
kernel_roundtrip vol.img db=new

# Mounted by the kernel, but another file changed: no conflict.
copy_image crashed.img vol.img
clear_needs_replay vol.img
mount_image vol.img mnt
cp theirs mnt/another
umount mnt
expect_ok atomic4ctl recover vol.img
out_has '^vol.img: 1 record replayed \(8192 bytes\)$'
kernel_roundtrip vol.img db=new another=theirs

# The file is gone, or its inode is another file now: skipped, and said.
copy_image crashed.img vol.img
clear_needs_replay vol.img
mount_image vol.img mnt
rm mnt/db
umount mnt
expect_ok atomic4ctl recover vol.img
out_has '^  skipped: .*the file is gone'
kernel_roundtrip vol.img

# --- a corrupt log: evidence is kept ------------------------------------------------------------------
# One of the log's superblocks: the other one serves. Both: nothing does, but --discard makes no log.
copy_image crashed.img vol.img
log_offset=$(debugfs -R 'blocks /.atomic4/log' base.img 2>/dev/null | awk '{ print $1 * 4096 }')
head -c 4096 /dev/urandom >noise
patch vol.img "$log_offset" noise
expect_status 1 atomic4ctl -d vol.img --json check
json_holds '.findings | map(.number) | index(30) != null'
expect_ok atomic4ctl recover vol.img
kernel_roundtrip vol.img db=new
copy_image crashed.img vol.img
patch vol.img "$log_offset" noise
patch vol.img $((log_offset + 8192)) noise
expect_fail 1 'vol.img: .*(superblock|log)' atomic4ctl recover vol.img
expect_fail 1 'vol.img: .*(superblock|log)' on read /db --offset 0 --length 4K
expect_status 1 atomic4ctl -d vol.img --json check
json_holds '.findings | map(.number) | index(13) != null'
expect_ok atomic4ctl --json info vol.img
json_holds '.log.error | length > 0' .needs_replay
