# Volumes that the tools keep their hands off, with messages that say what to do.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq mkfs.xfs

pattern db 16K >db
# All commands that change something, on a volume that must not be changed.
writers=("enable vol.img" "disable --force vol.img" "recover vol.img" "recover --force vol.img"
    "-d vol.img prealloc /x --size 64K" "-d vol.img write /db --offset 0 --from db"
    "-d vol.img write /db --offset 0 --plain --from db")
readers=("-d vol.img read /db --offset 0 --length 4K" "-d vol.img status /db" "-d vol.img map /db"
    "-d vol.img ls" "-d vol.img check" "-d vol.img check /db")

# all_refuse REGEX COMMAND…: each is exit status 1 with that message, and vol.img stays as it is.
all_refuse() {
    local regex=$1 command
    shift
    [ -b vol.img ] || remember vol.img
    for command; do
        # shellcheck disable=SC2086
        expect_fail 1 "$regex" atomic4ctl $command
    done
    [ -b vol.img ] || unchanged vol.img
}
prepared() {
    make_image vol.img 64M "$@"
    expect_ok atomic4ctl -d vol.img prealloc /db --size 64K
}

# --- in use ---------------------------------------------------------------------------------------
prepared
attach loop vol.img
all_refuse "image vol.img is attached to $loop: losetup -d $loop, or use $loop itself" \
    "${writers[@]}" "${readers[@]}"
mkdir -p mnt
for option in rw ro; do
    mount -o $option "$loop" mnt
    UNDO+=("umount '$T/mnt'")
    all_refuse "vol.img is attached to $loop, which is mounted on $T/mnt: umount $T/mnt and losetup -d $loop" \
        "${writers[@]}" "${readers[@]}"
    expect_fail 1 "$loop is mounted on $T/mnt: umount $T/mnt first" \
        atomic4ctl -d "$loop" write /db --offset 0 --from db
    expect_fail 1 "$loop is mounted on $T/mnt: umount $T/mnt first" atomic4ctl -d "$loop" check
    # But info looks at it, and says so.
    expect_ok atomic4ctl --json info "$loop"
    json_holds ".mounted_on == \"$T/mnt\"" .atomic4
    expect_ok atomic4ctl info vol.img
    out_has "^  mounted on +$T/mnt \\(what follows may be out of date\\)\$"
    # So does frag. (Whether a bitmap agrees with its descriptor at that moment is another matter.)
    capture atomic4ctl --json frag "$loop"
    json_holds '.free_blocks > 0'
    err_has "^atomic4ctl: warning: $loop is mounted on $T/mnt: the figures may be out of date\$"
    umount mnt
done
# Mounted in another mount namespace only.
mkfifo ready go
unshare -m --propagation slave bash -c "mount '$loop' mnt; echo ready >ready; read -r _ <go" &
helper=$!
UNDO+=("kill $helper")
read -r _ <ready
expect_fail 1 "$loop is (mounted|in use)" atomic4ctl -d "$loop" write /db --offset 0 --from db
expect_fail 1 'vol.img' atomic4ctl -d vol.img write /db --offset 0 --from db
echo go >go
wait $helper
detach "$loop"

exec 9<vol.img
flock -x 9
all_refuse 'vol.img is in use by another process \(pid [0-9]+' "${writers[@]}" "${readers[@]}"
flock -u 9
flock -s 9
all_refuse 'vol.img is in use by another process' "${writers[@]}"
expect_ok atomic4ctl -d vol.img ls # readers go together
exec 9<&-
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from db

# --- the volume needs something else first -----------------------------------------------------------
kernel_recovers='mount and unmount it once, the kernel recovers its journal'
# The image as a power cut would leave it: copied while mounted and with the journal in use.
mount_image vol.img mnt
pattern unsynced 300K >mnt/unsynced
sync -f mnt
copy_image vol.img dirty.img
umount mnt
copy_image dirty.img vol.img
has_feature vol.img needs_recovery || die "this should have a journal to recover"
all_refuse "its journal needs recovery: $kernel_recovers" "${writers[@]}" "${readers[@]}"
expect_ok atomic4ctl info vol.img
kernel_roundtrip vol.img # which does that
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from db

tampered() {
    prepared
    debugfs -w -R "$1" vol.img >/dev/null 2>&1
}
tampered 'ssv state 3'
all_refuse 'ext4 has recorded errors on it: check it with fsck.atomic4 -f' \
    "${writers[@]}" "${readers[@]}"
tampered 'ssv error_count 2'
all_refuse 'ext4 has recorded errors on it' "${writers[@]}" "${readers[@]}"
tampered 'ssv last_orphan 15'
all_refuse "it lists orphaned inodes: $kernel_recovers" "${writers[@]}" "${readers[@]}"
prepared
debugfs -w -R 'ssv state 0' vol.img >/dev/null 2>&1
all_refuse 'it was not unmounted cleanly, or never checked: check it with fsck.atomic4 -f' \
    "${writers[@]}" "${readers[@]}"
prepared -O ^has_journal
debugfs -w -R 'ssv state 0' vol.img >/dev/null 2>&1
all_refuse 'it was not unmounted cleanly and has no journal to recover from: check it with fsck.atomic4 -f' \
    "${writers[@]}" "${readers[@]}"

# --- damaged, or something else ------------------------------------------------------------------------
prepared
truncate -s 40M vol.img
all_refuse 'truncated: the filesystem has 16384 blocks of 4096 bytes, the device only 41943040 bytes: restore it from a copy$' \
    "${writers[@]}" "${readers[@]}" "info vol.img"
truncate -s 1500 vol.img
all_refuse '^atomic4ctl: vol.img: ' "${writers[@]}" "${readers[@]}" "info vol.img"
: >vol.img
all_refuse '^atomic4ctl: vol.img: .*(truncated|not an ext4)' "${writers[@]}" "${readers[@]}" "info vol.img"
truncate -s 64M vol.img
all_refuse 'not an ext4 volume: no valid superblock \(mkfs.atomic4 makes one\)' \
    "${writers[@]}" "${readers[@]}" "info vol.img"
truncate -s 400M vol.img
mkfs.xfs -q vol.img
all_refuse 'not an ext4 volume: it holds xfs' "info vol.img" "enable vol.img" "-d vol.img ls"
prepared
printf 'X' | dd of=vol.img bs=1 seek=$((1024 + 0x78)) conv=notrunc status=none # the label
all_refuse 'the superblock has a bad checksum' "${writers[@]}" "${readers[@]}" "info vol.img"
prepared
# The volume attribute: another version, rubbish, gone.
stored_attribute() {
    debugfs -R 'ea_get -V / trusted.atomic4.volume' vol.img 2>/dev/null
}
attribute=$(stored_attribute)
[[ $attribute == "version=1 unit=16384 log="* ]] || die "volume attribute '$attribute'"
set_attribute() {
    debugfs -w -R "ea_set / trusted.atomic4.volume \"$1\"" vol.img >/dev/null 2>&1
}
set_attribute "${attribute/version=1/version=2}"
all_refuse 'version' "${writers[@]:3}" "${readers[@]}" "enable vol.img"
set_attribute "rubbish"
all_refuse "^atomic4ctl: vol.img: the volume attribute is damaged: 'rubbish': run atomic4ctl enable" \
    "${writers[@]:4}" "${readers[@]}"
copy_image vol.img anew.img
expect_ok atomic4ctl enable anew.img # as advised
check_clean anew.img
copy_image vol.img anew.img
expect_ok atomic4ctl recover anew.img # finds the log by its name
check_clean anew.img
expect_ok atomic4ctl --json info vol.img
json_holds '.log.error | length > 0'
set_attribute "$attribute later=key"
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from db
[[ $(stored_attribute) == *"later=key" ]] || die "an unknown key was lost: $(stored_attribute)"
debugfs -w -R "ea_rm / trusted.atomic4.volume" vol.img >/dev/null 2>&1
all_refuse 'the gate bit is set but the volume attribute is missing: atomic4ctl enable or disable was interrupted; run it again' \
    "${writers[@]:4}" "${readers[@]}"
copy_image vol.img anew.img
expect_ok atomic4ctl recover anew.img
check_clean anew.img
expect_ok atomic4ctl info vol.img
out_has '^  atomic4 +interrupted: run atomic4ctl enable or disable again$'
expect_ok atomic4ctl enable vol.img
check_clean vol.img
e2fsck_clean vol.img

# --- what can't be opened for writing, or at all -----------------------------------------------------
prepared
chmod 444 vol.img
for command in "${writers[@]}"; do
    # shellcheck disable=SC2086
    expect_fail 1 'vol.img: Permission denied: writing needs write permission \(chmod u\+w' \
        as_nobody atomic4ctl $command
done
for command in "${readers[@]}"; do
    # shellcheck disable=SC2086
    capture as_nobody atomic4ctl $command
    is "$STATUS" 0
done
chmod 000 vol.img
for command in "${writers[@]}" "${readers[@]}" "info vol.img" "frag vol.img"; do
    # shellcheck disable=SC2086
    expect_fail 1 'vol.img: Permission denied' as_nobody atomic4ctl $command
done
chmod 644 vol.img
if chattr +i vol.img 2>/dev/null; then
    UNDO+=("chattr -i '$T/vol.img'")
    expect_fail 1 'vol.img: .*chattr -i' atomic4ctl -d vol.img write /db --offset 0 --from db
    chattr -i vol.img
fi
attach loop vol.img -r
expect_fail 1 "$loop(: Read-only file system| is write-protected|: Permission denied).*blockdev --setrw" \
    atomic4ctl -d "$loop" write /db --offset 0 --from db
expect_ok atomic4ctl -d "$loop" read /db --offset 0 --length 4K
detach "$loop"

mkdir dir
mkfifo fifo
for row in "dir:a directory" "fifo:a FIFO" "/dev/null:a character device"; do
    path=${row%%:*}
    for command in "-d $path ls" "-d $path prealloc /x --size 4K" "info $path" "frag $path" "enable $path" \
        "recover $path" "disable $path"; do
        # shellcheck disable=SC2086
        expect_fail 1 "$path is ${row#*:}: a block device or an image file is needed" \
            atomic4ctl $command
    done
done
expect_fail 1 'missing.img: No such file or directory' atomic4ctl info missing.img
expect_fail 1 'missing.img: No such file or directory' atomic4ctl -d missing.img prealloc /x --size 4K
[ ! -e missing.img ] || die "missing.img was made"
expect_fail 1 'vol.img/x: Not a directory' atomic4ctl info vol.img/x
