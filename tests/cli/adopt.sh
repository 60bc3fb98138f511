# adopt and release: files that the kernel wrote, their reports as text and as JSON, and their errors.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq setfattr fallocate

make_image vol.img 96M
on() { atomic4ctl -d vol.img "$@"; }

# --- files as the kernel makes them -----------------------------------------------------------
mount_image vol.img mnt
pattern whole 1M >whole
cp whole mnt/whole
pattern odd 100001 >odd
cp odd mnt/odd
truncate -s 1M mnt/holes
printf tail | dd of=mnt/holes bs=1 seek=700000 conv=notrunc status=none
cp mnt/holes holes
cp whole mnt/punched
for ((i = 0; i < 1048576; i += 12288)); do fallocate -p -o $i -l 4096 mnt/punched; done
cp mnt/punched punched
fallocate -l 300000 mnt/allocated
cp mnt/allocated allocated
: >mnt/empty
setfattr -n user.colour -v blue mnt/odd
ln mnt/odd mnt/second
ln -s odd mnt/link
mkdir mnt/dir
touch -d '2001-02-03 04:05:06.789' mnt/odd
chattr +i mnt/empty
before=$(stat -c '%Y.%y %a %u:%g %h %s' mnt/odd)
umount mnt
names=(whole odd holes punched allocated)

# --- adopt ------------------------------------------------------------------------------------
expect_ok on --json adopt /whole --unit 64K
json_holds '.path == "/whole"' '.inode > 11' '.size == 1048576' '.unit == 65536' .changed \
    '.units == {"mapped": 16, "holes": 0}' '.bytes_copied == .units_moved * 65536'
err_is_empty
expect_ok on --json adopt /odd
json_holds '.unit == 16384' '.units == {"mapped": 7, "holes": 0}' .changed
expect_ok on adopt /holes
out_has '^/holes: adopted in 1 aligned unit of 16K, 1 of them moved \(4096 bytes copied\), inode [0-9]+$'
err_is_empty
expect_ok on --json adopt /punched
json_holds '.units == {"mapped": 64, "holes": 0}' '.units_moved == 64'
expect_ok on --json adopt /allocated --unit 4K
json_holds '.units == {"mapped": 74, "holes": 0}' '.units_moved == 0' '.bytes_copied == 0' .changed
check_clean vol.img
expect_ok on --json map /punched
json_holds '.unit == 16384' 'all(.runs[]; .aligned and .state == "written")' \
    'all(.runs[]; .device_offset % 16384 == 0)'
expect_ok on --json map /holes
json_holds '[.runs[] | select(.state == "written").length] | add == 16384'
e2fsck_clean vol.img

# Once more: says so, and changes nothing.
changes_nothing vol.img on adopt /odd
is "$STATUS" 0
out_has '^/odd: is adopted already, with aligned units of 16K: nothing to do$'
changes_nothing vol.img on --json adopt /whole
json_holds '.changed | not' '.unit == 65536' '.units_moved == 0'
changes_nothing vol.img on --json adopt /link # a symbolic link inside the volume
json_holds '.changed | not' '.path == "/link"'
# With another unit: laid out anew.
expect_ok on --json adopt /odd --unit 256K
json_holds '.unit == 262144' '.units == {"mapped": 1, "holes": 0}' .changed
expect_ok on --json map /odd
json_holds '[.runs[] | {state, length}] == [{"state": "written", "length": 102400}, {"state": "unwritten", "length": 159744}]'

# The kernel finds all as it was.
mount_image vol.img mnt
for name in "${names[@]}"; do same_bytes "mnt/$name" <(cat "$name"); done
is "$(stat -c '%Y.%y %a %u:%g %h %s' mnt/odd)" "$before"
is "$(getfattr --only-values -n user.colour mnt/odd)" blue
umount mnt

# Atomic writes work on it.
pattern page 16K >page
expect_ok on write /punched --offset 32K --from page
patch punched 32768 page
kernel_roundtrip vol.img punched=punched whole=whole odd=odd holes=holes allocated=allocated

# --- release ----------------------------------------------------------------------------------
expect_ok on release /whole
out_has '^/whole: released: nothing promises its layout any more; its data stays$'
expect_ok on --json status /whole
json_holds '.atomic | not' '.unit == null'
is "$(xattrs vol.img /whole)" ''
changes_nothing vol.img on release /whole
is "$STATUS" 0
out_has '^/whole: no atomic file: nothing to do$'
expect_ok on --json release /odd
json_holds '.path == "/odd"' '.inode > 11' .changed
is "$(xattrs vol.img /odd)" 'user.colour (4) = "blue"'
changes_nothing vol.img on --json release /odd
json_holds '.changed | not'
kernel_roundtrip vol.img whole=whole odd=odd

# --- refused: nothing is changed --------------------------------------------------------------
refused() { # REGEX COMMAND…
    changes_nothing vol.img on "${@:2}"
    is "$STATUS" 1
    err_has "^atomic4ctl: $1"
    out_is_empty
}
refused '/dir: inode [0-9]+: is a directory$' adopt /dir
refused '/: inode 2: is a directory$' adopt /
refused '/empty: inode [0-9]+: is immutable$' adopt /empty
refused '/.atomic4/log: inode [0-9]+: this is the redo log$' adopt /.atomic4/log
refused '/.atomic4/lock: inode [0-9]+: this is the volume.s lock file$' adopt /.atomic4/lock
refused '/none: ' adopt /none
refused '/whole: unit 12288: want a power of two from 4096' adopt /whole --unit 12K
refused '/whole: unit 8388608: want' adopt /whole --unit 8M
refused '/.atomic4/log: inode [0-9]+: this is the redo log$' release /.atomic4/log
refused '/.atomic4/lock: ' release /.atomic4/lock
refused '/dir: inode [0-9]+: is a directory$' release /dir
refused '/none: ' release /none
expect_fail 2 'PATH is required' on adopt
expect_fail 2 'PATH is required' on release
expect_fail 2 'd IMAGE' atomic4ctl adopt /whole
expect_fail 2 'not through a --socket' atomic4ctl --socket s adopt /whole
expect_fail 2 'not through a --socket' atomic4ctl --socket s release /whole
expect_fail 2 "'-1'" on adopt /whole --unit -1

# No room for what moves.
mount_image vol.img mnt
pattern big 30M >mnt/big
for ((i = 0; i < 30; ++i)); do fallocate -p -o "${i}M" -l 4096 mnt/big; done
umount mnt
n=0
until ! atomic4ctl -d vol.img prealloc "/fill$((++n))" --size 4M --unit 4M >/dev/null 2>&1; do :; done
refused '/big: .*(blocks wanted|aligned)' adopt /big --unit 1M
e2fsck_clean vol.img
