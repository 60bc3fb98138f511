# The cases of the RFC "ext4: Allocator changes for atomic write support with DIO" and of its thread,
# by name.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq

pattern 4k 4K >four
pattern 8k 8K >eight
pattern 16k 16K >sixteen

# --- John Garry's report: 358,400 blocks of 1 KiB, 4 KiB at offset 0 of an empty file ------------
# A group-relative buddy is off by one here, since the first data block is 1.
expect_ok mkfs.atomic4 -q -b 1024 vol.img 358400
expect_ok atomic4ctl --json info vol.img
json_holds '.blocks == 358400' '.block_size == 1024'
expect_ok atomic4ctl -d vol.img prealloc /f --size 0 --unit 4K
expect_ok atomic4ctl -d vol.img write /f --offset 0 --from four
expect_ok atomic4ctl -d vol.img --json map /f
json_holds '.runs | length == 1' '.runs[0].device_offset / 1024 % 4 == 0' '.runs[0].aligned' \
    '.runs[0].length == 4096' '.runs[0].state == "written"'
# Status on a 1 KiB-block file.
expect_ok atomic4ctl -d vol.img --json status /f
json_holds '.unit_min == 1024' '.unit == 4096'
for length in 1024 2048; do
    pattern "small $length" $length >small
    expect_ok atomic4ctl -d vol.img write /f --offset $length --from small
    patch four $length small
done
kernel_roundtrip vol.img f=four

# --- Ojaswin Mujoo's transcript: 4 KiB at 0, then 8 KiB at 8192 ------------------------------------
make_image vol.img 128M -u 4K
pattern 4k 4K >four
expect_ok atomic4ctl -d vol.img prealloc /f --size 0 --unit 4K
expect_ok atomic4ctl -d vol.img write /f --offset 0 --from four
expect_ok atomic4ctl -d vol.img write /f --offset 8192 --from eight
expect_ok atomic4ctl -d vol.img --json map /f
json_holds '[.runs[] | select(.state != "hole")] | length == 2' \
    '[.runs[] | {offset, state}] == [{"offset": 0, "state": "written"}, {"offset": 4096, "state": "hole"}, {"offset": 8192, "state": "written"}]' \
    '.runs[2].length == 8192' '.runs[2].device_offset % 8192 == 0'
{ cat four && zeros 4K && cat eight; } >f
kernel_roundtrip vol.img f=f

# --- John Garry's trial user: 4 KiB first, then 16 KiB over it --------------------------------------
# By us and by the kernel. Here the device has no atomic writes, so forced native can't serve at all
# (native.sh has the case on a device that can).
expect_ok atomic4ctl -d vol.img prealloc /ours --size 0 --unit 4K
expect_ok atomic4ctl -d vol.img write /ours --offset 0 --from four
mount_image vol.img mnt
dd if=four of=mnt/kernels bs=4K oflag=direct status=none
umount mnt
for file in ours kernels; do
    expect_fail 1 'no native atomic writes here' \
        atomic4ctl -d vol.img write /$file --offset 0 --engine native --from sixteen
    expect_ok atomic4ctl -d vol.img --json write /$file --offset 0 --engine auto --from sixteen
    json_holds '.engine == "logged"' '.why_not_native != ""'
    pattern "again $file" 16K >again.$file
    expect_ok atomic4ctl -d vol.img --json write /$file --offset 0 --engine logged --from again.$file
    json_holds '.engine == "logged"'
done
kernel_roundtrip vol.img f=f ours=again.ours kernels=again.kernels
