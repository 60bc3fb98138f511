# The native engine for real: an image on XFS, which does RWF_ATOMIC in software.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq mkfs.xfs

truncate -s 1G xfs.img
mkfs.xfs -q xfs.img
mount_image xfs.img xfs
pattern big 8M >big

image=$T/xfs/vol.img
make_xfs_image() {
    make_image "$image" 128M "$@"
}
native() { atomic4ctl -d "$image" --json write "$@"; }

make_xfs_image -l 16M
expect_ok atomic4ctl --json info "$image"
json_holds '.native | has("why_not")'
if [ "$(json_value .native.unit_max)" = 0 ]; then
    skip "no atomic writes on XFS here: $(json_value .native.why_not)"
fi
device_min=$(json_value .native.unit_min)
device_max=$(json_value .native.unit_max)
is "$device_min" 4096
expect_ok atomic4ctl info "$image"
out_has '^  native writes  4K to '

# --- mkfs and enable don't warn about missing hardware here ----------------------------------------
expect_ok mkfs.atomic4 -F -b 4096 -l 16M "$image"
! grep -q 'no hardware atomic writes' "$ERR" || die "a warning about missing atomic writes"
if [ "$device_max" -lt $((4 << 20)) ]; then
    expect_ok mkfs.atomic4 -F -b 4096 -l 16M -u 4M "$image"
    err_has "hardware atomic writes go up to .*, less than the unit 4M: the logged engine will serve larger"
    make_xfs_image -l 16M
fi

# --- every power of two, over an aligned file ------------------------------------------------------
expect_ok atomic4ctl -d "$image" prealloc /db --size 16M --unit 4M
expect_ok atomic4ctl -d "$image" --json status /db
json_holds ".unit_max_native == ([$device_max, 4194304] | min)" '.unit_min == 4096' \
    'if .unit <= .unit_max_native then .engine == "native" else .engine == "logged" end'
zeros 16M >db
native_max=$(json_value .unit_max_native)
logged_max=$(json_value .unit_max_logged)
for ((length = device_min; length <= native_max; length *= 2)); do
    for engine in native auto; do
        pattern "$engine $length" $length >new
        expect_ok native /db --offset $((8388608 - length)) --engine $engine --from new
        json_holds '.engine == "native"' '.why_not_native == ""' ".length == $length"
        patch db $((8388608 - length)) new
    done
done
for ((length = device_min; length <= native_max; length *= 2)); do
    changes_nothing "$image" native /db --offset 0 --length $((length + 1)) --engine native --from big
    is "$STATUS" 1
    expect_fail 1 'not a power of two|outside the limits' \
        native /db --offset 0 --length $((length - 1)) --engine native --from big
    expect_fail 1 'not a multiple' native /db --offset 1 --length $length --engine native --from big
    expect_fail 1 'not a multiple' native /db --offset 512 --length $length --engine native --from big
done
expect_fail 1 'outside the limits' native /db --offset 0 --length 2K --engine native --from big
if [ "$native_max" -lt $((4 << 20)) ]; then
    expect_fail 1 "outside the limits 4096..$native_max" \
        native /db --offset 0 --length $((native_max * 2)) --engine native --from big
    if [ "$logged_max" -ge $((native_max * 2)) ]; then
        slice big 0 $((native_max * 2)) >new
        expect_ok native /db --offset 0 --engine auto --from new
        json_holds '.engine == "logged"' '.why_not_native != ""'
        patch db 0 new
    fi
fi
kernel_roundtrip "$image" db=db

# Smaller blocks than the device's least: only the logged engine takes those.
expect_ok mkfs.atomic4 -q -F -b 1024 "$image"
expect_ok atomic4ctl -d "$image" prealloc /db --size 1M
expect_fail 1 "1024 bytes are outside the device's limits 4096.." \
    native /db --offset 0 --length 1K --engine native --from big
expect_ok native /db --offset 0 --length 1K --from big
json_holds '.engine == "logged"'
expect_ok native /db --offset 4K --length 4K --from big
json_holds '.engine == "native"'

# --- forced native over what is not one aligned written run: EIO ----------------------------------------
make_xfs_image
pattern 4k 4K >four
pattern 16k 16K >sixteen
file_in_two_runs "$image" /two
pattern 8k 8K >eight
expect_fail 1 '/two: the range is not one contiguous run on the device' \
    native /two --offset 0 --engine native --from eight
expect_ok native /two --offset 0 --from eight
json_holds '.engine == "logged"' '.why_not_native == "the range is not one contiguous run on the device"'
expect_ok native /two --offset 4K --engine native --from four
patch eight 4096 four

# John Garry's trial user: 4 KiB first (by us, by the kernel), then 16 KiB over it.
expect_ok atomic4ctl -d "$image" prealloc /ours --size 0 --unit 4K
expect_ok native /ours --offset 0 --from four
mount_image "$image" mnt
# A file of the kernel's, one run, that begins one block off.
fallocate -l 1M mnt/kernels
pattern kernels 1M >kernels
dd if=kernels of=mnt/kernels bs=1M oflag=direct conv=notrunc status=none
dd if=four of=mnt/first4k bs=4K oflag=direct status=none
truncate -s 1M mnt/holes
fallocate -l 1M mnt/unwritten
umount mnt
expect_fail 1 '/ours: .*(beyond EOF|holes|one contiguous|multiple)' \
    native /ours --offset 0 --engine native --from sixteen
expect_fail 1 '/first4k: .*(beyond EOF|holes|one contiguous|multiple)' \
    native /first4k --offset 0 --engine native --from sixteen
for file in ours first4k; do
    expect_ok native /$file --offset 0 --engine logged --from sixteen
    pattern "again $file" 16K >again.$file
    expect_ok native /$file --offset 0 --engine auto --from again.$file
done
# Where the kernel put it decides which of the two this shows; ours and two show the refusal anyway.
expect_ok atomic4ctl -d "$image" --json map /kernels
device=$(json_value '.runs[0].device_offset')
if [ $((device % 16384)) -eq 0 ]; then
    expect_ok native /kernels --offset 0 --engine native --from sixteen
    patch kernels 0 sixteen
else
    expect_fail 1 "the range lies at $device on the device, which is not a multiple of 16384" \
        native /kernels --offset 0 --engine native --from sixteen
    expect_ok native /kernels --offset 0 --from sixteen
    json_holds '.engine == "logged"'
    patch kernels 0 sixteen
fi
# A volume that is ours: holes and unwritten blocks are made ready for either engine.
for file in holes unwritten; do
    expect_ok native /$file --offset 64K --engine native --from sixteen
    json_holds '.engine == "native"'
    { zeros 64K && cat sixteen && zeros $((1048576 - 81920)); } >$file
done
expect_fail 1 'beyond EOF: only the logged engine grows a file' \
    native /holes --offset 1M --engine native --from sixteen
expect_ok native /holes --offset 1M --from sixteen
json_holds '.engine == "logged"'
cat sixteen >>holes
kernel_roundtrip "$image" two=eight ours=again.ours first4k=again.first4k kernels=kernels holes=holes \
    unwritten=unwritten
