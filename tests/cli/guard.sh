# atomic4ctl guard: stock tools on a view of the volume, as a user runs them.
. "$(dirname "$0")/lib.sh"
need_root
need_program resize2fs
[ -c /dev/fuse ] || skip "no /dev/fuse"

truncate -s 64M vol.img
expect_ok mkfs.atomic4 -q -b 4096 vol.img
expect_ok atomic4ctl -d vol.img prealloc /db --size 1M --unit 16K
pattern page 16K >page
expect_ok atomic4ctl -d vol.img write /db --offset 32K --from page
guard() { atomic4ctl guard "$@"; }
is_as_before() { err_has "^vol.img: [23] atomic files? as before; "; }
gate_is_everywhere() {
    expect_ok atomic4ctl --json info vol.img
    json_holds .gate.primary '.gate.backups == .gate.backups_with_gate'
}

# Looking: everything is there but our bits, under the device's own name.
expect_ok guard vol.img -- dumpe2fs -h '{}'
out_has '^Filesystem magic number: +0xEF53$'
out_lacks FEATURE_C28
err_has '^vol.img: 2 atomic files as before; 0 writes, 0 of them of superblocks$'
expect_ok guard vol.img -- e2fsck -fn '{}'
out_has '^vol.img: .* files'
changes_nothing vol.img guard -n vol.img -- e2fsck -fn '{}'
is "$STATUS" 0
changes_nothing vol.img guard -n vol.img -- dumpe2fs -h '{}'
is "$STATUS" 0
changes_nothing vol.img guard -n vol.img -- tune2fs -L name '{}'
[ "$STATUS" != 0 ] || die "a read-only view was written"

# Changing: a label, with the superblock written in pieces; the tool's exit status is ours.
expect_ok guard vol.img -- tune2fs -L guarded '{}'
is_as_before
is "$(blkid -o value -s LABEL vol.img)" guarded
gate_is_everywhere
expect_ok guard vol.img -- e2fsck -fy '{}'
gate_is_everywhere
expect_ok guard vol.img -- e2image '{}' metadata.e2i
[ -s metadata.e2i ] || die "e2image has made nothing"
expect_status 7 guard vol.img -- sh -c 'exit 7'
expect_status 143 guard vol.img -- sh -c 'kill -TERM $$'
expect_ok atomic4ctl --json guard vol.img -- true
jq -e '.files == 2 and .status == 0 and .refused == [] and .changed == []' "$ERR" >/dev/null

# Nobody else sees the view.
expect_ok guard vol.img -- sh -c 'grep -q "^atomic4-guard $(readlink -f vol.img) fuse" /proc/self/mounts'
is "$(grep -c "^atomic4-guard" /proc/self/mounts || true)" 0

# What touches an atomic file is refused, and the tool is ended.
block=$(atomic4ctl --json -d vol.img map /db | jq '.runs[0].device_offset')
changes_nothing vol.img guard vol.img -- \
    sh -c 'dd if=/dev/zero of="$1" bs=4096 seek="$2" count=1 conv=notrunc,fsync; exit 0' sh '{}' $((block / 4096 + 3))
is "$STATUS" 125
err_has "^vol.img: sh was ended, since it wrote where it must not:$"
err_has "^  a write of 4096 bytes at [0-9]+ would change block $((block / 4096 + 3)), data of /db \\(inode [0-9]+\\)$"
inode=$(atomic4ctl --json -d vol.img status /db | jq .inode)
changes_nothing vol.img guard vol.img -- debugfs -w -R "sif <$inode> flags 0x80000" '{}'
is "$STATUS" 125
err_has "the inode of /db \\(inode $inode\\)"
check_clean vol.img
# Also in the middle of a word; and nothing that the tool leaves behind writes on.
changes_nothing vol.img guard vol.img -- \
    dd if=/dev/zero 'of={}' bs=4096 seek=$((block / 4096)) count=1 conv=notrunc
is "$STATUS" 125
cat >writes_on.py <<'END'
import os, sys
disk = os.open(sys.argv[1], os.O_RDWR)
try:
    os.pwrite(disk, b"x", int(sys.argv[2]))
except PermissionError:
    pass
os.pwrite(disk, b"x" * 4096, 60 << 20)
END
changes_nothing vol.img guard vol.img -- sh -c 'python3 writes_on.py "$@"; true' sh '{}' "$block"
is "$STATUS" 125
# A name that leads past the view is refused.
exec 7<>vol.img
changes_nothing vol.img guard /dev/fd/7 -- \
    dd if=/dev/zero 'of={}' bs=4096 seek=$((block / 4096)) count=1 conv=notrunc
is "$STATUS" 1
err_has 'leads past a guarded view: give the real path'
exec 7>&-
changes_nothing vol.img guard vol.img -- dd if=/dev/zero 'of={}' bs=1024 seek=1 count=1 conv=notrunc
is "$STATUS" 125
err_has '^  the superblock$'

# What only touches it by metadata elsewhere is seen afterwards.
for change in "kill_file /db" "freeb $((block / 4096)) 4"; do
    copy_image vol.img other.img
    capture guard other.img -- debugfs -w -R "$change" '{}'
    is "$STATUS" 125
    err_has '#1[17] /db: a block'
    expect_status 1 fsck.atomic4 -fy other.img
    check_clean other.img
done

# Resizing: refused where it would cut an atomic file off, and tried out first.
expect_ok atomic4ctl -d vol.img prealloc /far --size 40M --unit 64K
remember vol.img
expect_fail 1 'refused, nothing is changed: block [0-9]+ of /far .* lies beyond the new end' \
    guard vol.img -- resize2fs '{}' 20M
unchanged vol.img
capture guard vol.img -- resize2fs -M '{}'
is "$STATUS" 1
err_has 'refused, nothing is changed: in a rehearsal'
unchanged vol.img
copy_image vol.img other.img
expect_ok guard other.img -- resize2fs '{}' 60M
err_has '^other.img: a rehearsal, on a copy:$'
err_has '^other.img: and now on the device itself:$'
check_clean other.img
e2fsck_clean other.img
truncate -s 128M vol.img
expect_ok guard vol.img -- resize2fs '{}'
err_has "^vol.img: 3 atomic files as before; "
gate_is_everywhere
check_clean vol.img
e2fsck_clean vol.img
expect_ok atomic4ctl -d vol.img read /db --offset 32K --length 16K
cmp page "$OUT"

# Bad input.
expect_fail 1 'no-such-tool: No such file' guard vol.img -- no-such-tool '{}'
expect_fail 2 'COMMAND is required' guard vol.img
expect_fail 1 'none.img' guard none.img -- true
cp vol.img plain.img
expect_ok atomic4ctl disable --force plain.img
expect_fail 1 'plain.img: an ext4 volume, but not an atomic4 one' guard plain.img -- true
