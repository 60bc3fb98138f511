# fsck.atomic4 and live records of the redo log: what was acknowledged is there afterwards, whatever
# e2fsck does to counts, and whatever is wrong with the file.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq python3 script strace
[ -c /dev/fuse ] || skip "no /dev/fuse"

pattern data 256K >data
pattern new 32K >new
cp data newer
patch newer 0 new
pattern plain 12K >plain

# A volume that has been mounted, with a record for /db.
truncate -s 32M live.img
expect_ok mkfs.atomic4 -q -b 1024 -l 256K live.img
debugfs -w -R "write plain low" live.img >/dev/null 2>&1
expect_ok atomic4ctl -d live.img prealloc /db --size 256K --unit 16K
expect_ok atomic4ctl -d live.img write /db --offset 0 --plain --from data
for field in "mnt_count 5" "mtime 20260102030405"; do debugfs -w -R "ssv $field" live.img >/dev/null 2>&1; done
db=$(debugfs -R "stat /db" live.img 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p')
copy_image live.img unreplayed.img
leave_record live.img /db new

holds() {
    expect_ok atomic4ctl -d vol.img read /db --offset 0 --length 256K
    cmp "$1" "$OUT"
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}

# --- a file that is damaged isn't gone -----------------------------------------------------------------
for damage in "links_count 0" "mode 0"; do
    copy_image live.img vol.img
    debug_live vol.img "sif <$db> $damage"
    copy_image vol.img stopped.img
    # Somebody has to decide, and until then the record is kept.
    expect_status 4 fsck.atomic4 -p vol.img
    has_feature vol.img FEATURE_I28
    expect_status 1 fsck.atomic4 -y vol.img
    holds newer
    copy_image stopped.img vol.img
    expect_status 1 fsck.atomic4 -y vol.img
    holds newer
done
copy_image live.img vol.img
debug_live vol.img "sif <$db> generation 0"
expect_status 1 fsck.atomic4 -p vol.img
out_has "#10 redo log: an atomic inode has generation 0: inode $db, by its records [1-9]"
holds newer
copy_image live.img vol.img
debug_live vol.img "sif <$db> size 5"
expect_status 1 fsck.atomic4 -y vol.img
out_has "#35 redo log: .*inode $db has written blocks beyond its size"
holds newer
# One that is gone is gone.
copy_image live.img vol.img
debug_live vol.img "rm /db"
expect_status 1 fsck.atomic4 -y vol.img
out_has '#26 redo log: records of files that are gone'
check_clean vol.img

# One whose file has lost its blocks, and how they are to be mapped, for good.
flags=$(debugfs -R "stat <$db>" unreplayed.img 2>/dev/null | sed -n 's/.*Flags: 0x\([0-9a-f]*\).*/\1/p')
emptied=("sif <$db> flags $((16#$flags & ~16#80000))" "sif <$db> blocks 0")
for i in 0 1 2 3 4 5 6 7 8 9 10 11 IND DIND TIND; do emptied+=("sif <$db> block[$i] 0"); done
copy_image live.img vol.img
debug_live vol.img "${emptied[@]}"
expect_status 5 fsck.atomic4 -p vol.img  # e2fsck has counted again
out_has '#28 redo log: .*the file is not extent-mapped'
has_feature vol.img FEATURE_I28
expect_status 1 fsck.atomic4 -y vol.img
out_has '#34 redo log: .*the file is not extent-mapped. Drop the record. yes'
check_clean vol.img
e2fsck_clean vol.img
expect_ok fsck.atomic4 -fp vol.img

# --- e2fsck counts mounts from 0: that is no mount ---------------------------------------------------------
copy_image live.img vol.img
set_needs_replay vol.img off
table=$((2048 + 8))  # the inode table of group 0, in the first descriptor
patch vol.img $table <(printf '\063')
set_needs_replay vol.img on
expect_status 1 fsck.atomic4 -fy vol.img
out_lacks '#27'
holds newer
copy_image live.img vol.img
printf 'n\nn\nn\n' | script -qec "fsck.atomic4 -f vol.img" /dev/null >said 2>&1 || true
grep -q 'Replay? (y/n)' said || { cat said >&2; die "it wasn't asked"; }
has_feature vol.img FEATURE_I28
expect_status 1 fsck.atomic4 -fp vol.img
out_lacks '#27'
holds newer

# --- nothing leads to the log any more ---------------------------------------------------------------------
copy_image live.img vol.img
debug_live vol.img "rm /.atomic4/log" "ea_rm / trusted.atomic4.volume"
expect_status 4 fsck.atomic4 -fp vol.img
capture fsck.atomic4 -fy vol.img
is "$STATUS" 1
out_has '#13 redo log: .*nothing leads to it'
out_has 'it has a new redo log'
holds data

# --- other tools wait until the records are replayed --------------------------------------------------------
copy_image live.img vol.img
remember vol.img
expect_fail 1 'its redo log has to be replayed first: run fsck.atomic4 -p' \
    atomic4ctl guard vol.img -- tune2fs -L x '{}'
unchanged vol.img
changes_nothing vol.img atomic4ctl guard -n vol.img -- dumpe2fs -h '{}'
is "$STATUS" 0
