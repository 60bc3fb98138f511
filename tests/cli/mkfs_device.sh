# mkfs.atomic4 on block devices, and refusals of what is mounted or attached.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq

truncate -s 64M disk.img
attach loop disk.img
expect_ok mkfs.atomic4 -b 4096 "$loop"
out_has "^$loop: atomic4 enabled, unit 16K, redo log 1M\$"
err_has "warning: $loop: no hardware atomic writes \\(.*\\): the logged engine will serve"
expect_ok atomic4ctl --json info "$loop"
json_holds .atomic4 '.mounted_on == null'
pattern device 16K >new
expect_ok atomic4ctl -d "$loop" prealloc /db --size 64K
expect_ok atomic4ctl -d "$loop" write /db --offset 16K --from new
expect_ok atomic4ctl -d "$loop" read /db --offset 16K --length 16K
same_bytes new "$OUT"

# The image behind it is not to be touched meanwhile.
changes_nothing disk.img mkfs.atomic4 -F disk.img
is "$STATUS" 1
err_has "image disk.img is attached to $loop: losetup -d $loop, or use $loop itself"
is "$(wc -l <"$ERR")" 1
detach "$loop"
kernel_roundtrip disk.img

# Mounted, as image and as device, read-write and read-only.
for option in rw ro; do
    attach loop disk.img
    mkdir -p mnt
    mount -o $option "$loop" mnt
    UNDO+=("umount '$T/mnt'")
    expect_fail 1 "$loop is mounted on $T/mnt: umount $T/mnt first" mkfs.atomic4 -F "$loop"
    expect_fail 1 "disk.img is attached to $loop, which is mounted on $T/mnt: umount $T/mnt and" \
        mkfs.atomic4 -F disk.img
    expect_fail 1 'is mounted' mkfs.atomic4 -n "$loop"
    umount mnt
    detach "$loop"
done
check_clean disk.img
e2fsck_clean disk.img

# A write-protected device.
attach loop disk.img -r
expect_fail 1 "$loop(: Read-only file system| is write-protected|: Permission denied)" \
    mkfs.atomic4 -F "$loop"
detach "$loop"

# A partition whose start is no multiple of the unit. (addpart needs no partition table, which not
# every kernel reads.)
truncate -s 80M parts.img
attach loop parts.img
UNDO+=("delpart $loop 1" "delpart $loop 2") # they would outlive the image's detachment
addpart "$loop" 1 2049 65536
addpart "$loop" 2 67616 65536
partition() {
    local node=$T/$1 numbers
    numbers=$(cat "/sys/class/block/$1/dev")
    mknod "$node" b "${numbers%:*}" "${numbers#*:}"
    echo "$node"
}
first=$(partition "${loop##*/}p1")
second=$(partition "${loop##*/}p2")
expect_ok mkfs.atomic4 -b 4096 "$first"
err_has "warning: $first starts at byte 1049088 of its disk, which is not a multiple of the unit 16K"
expect_ok atomic4ctl -d "$first" prealloc /db --size 64K
expect_ok atomic4ctl -d "$first" write /db --offset 16K --from new
# Units are aligned from the partition's own start, which is what the kernel sees too.
check_clean "$first"
mkdir -p mnt
mount "$first" mnt
UNDO+=("umount '$T/mnt'")
head -c 32768 mnt/db | tail -c 16384 >read
same_bytes new read
umount mnt
expect_ok mkfs.atomic4 -b 4096 "$second"
! grep -q 'starts at byte' "$ERR" || die "a warning about an aligned partition"
expect_ok mkfs.atomic4 -F -u 4M -l 4M "$second"
err_has "warning: $second starts at byte 34619392 .* unit 4M"
mkdir -p mnt
mount "$second" mnt
UNDO+=("umount '$T/mnt'")
expect_fail 1 "$second is mounted on $T/mnt" mkfs.atomic4 -F "$second"
expect_fail 1 "$loop" mkfs.atomic4 -F "$loop" # the whole disk, under it
umount mnt

# On an image that may not be written.
make_image readonly.img 64M
chmod 444 readonly.img
expect_fail 1 'readonly.img: Permission denied' as_nobody mkfs.atomic4 -F "$T/readonly.img"
