# atomic4ctl enable and disable: in place, on a volume that the kernel has filled.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq

# --- a used ext4: files, directories, links, holes, xattrs ------------------------------------
for block in 1024 2048 4096; do
    rm -f vol.img
    mke2fs -q -t ext4 -b $block vol.img 96M >/dev/null
    mount_image vol.img mnt
    mkdir -p mnt/a/b/c
    for i in $(seq 60); do pattern "file $i" $((i * 1777)) >"mnt/a/b/f$i"; done
    ln -s f3 mnt/a/b/link
    ln mnt/a/b/f4 mnt/a/hard
    truncate -s 1M mnt/a/sparse
    pattern tail 3000 >>mnt/a/sparse
    tree_state() {
        (cd mnt && find . -path ./.atomic4 -prune -o -path ./lost+found -prune -o -type f -print0 |
            sort -z | xargs -0 sha256sum && find a -printf '%p %m %U:%G %n %y %l\n' | sort)
    }
    tree_state >before
    umount mnt

    expect_ok atomic4ctl enable vol.img
    out_has '^vol.img: atomic4 enabled, unit 16K, redo log 1536K$'
    err_has 'type atomic4 .or pass number 0., such as: UUID='
    expect_ok atomic4ctl --json info vol.img
    json_holds .atomic4 '.version == 1' .gate.primary '.gate.backups == .gate.backups_with_gate' \
        ".block_size == $block" '.log.live_records == 0' '.log.end == "clean"'
    kernel_roundtrip vol.img
    mount_image vol.img mnt
    tree_state >after
    is "$(stat -c %a:%F mnt/.atomic4)" 700:directory
    is "$(stat -c %a:%s mnt/.atomic4/log)" "600:$((1536 << 10))"
    is "$(stat -c %a:%s mnt/.atomic4/lock)" 600:0
    umount mnt
    same_bytes before after

    expect_fail 1 'vol.img: atomic4 is enabled already' atomic4ctl enable vol.img
    # The gate taken away, from one copy or (by e2fsck) from all, and put back.
    debugfs -w -R "feature -FEATURE_C28" vol.img >/dev/null 2>&1
    expect_ok atomic4ctl enable vol.img
    out_has ' \(completed: only the gate bit was missing\)$'
    debugfs -w -R "feature -FEATURE_C28" vol.img >/dev/null 2>&1
    e2fsck -fy vol.img >/dev/null 2>&1 || true
    changes_nothing vol.img atomic4ctl enable -u 64K vol.img
    is "$STATUS" 1
    err_has 'vol.img: atomic4 is there already, with unit 16K and a redo log of 1536K: disable it'
    expect_ok atomic4ctl --json enable -u 16K -l 1536K vol.img
    json_holds .completed '.unit == 16384' '.log_size == 1572864'
    pattern db 32K >db
    expect_ok atomic4ctl -d vol.img prealloc /a/db --size 64K
    expect_ok atomic4ctl -d vol.img write /a/db --offset 32K --from db
    expect_fail 1 'vol.img: 1 atomic file in use \(first: /a/db\): remove them, or --force' \
        atomic4ctl disable vol.img
    check_clean vol.img
    expect_ok atomic4ctl disable --force vol.img
    out_has '^vol.img: atomic4 disabled, 1 file released; it is a plain ext4 now$'
    expect_fail 1 'vol.img: atomic4 is not enabled' atomic4ctl disable vol.img
    expect_fail 1 'vol.img: an ext4 volume, but not an atomic4 one: run atomic4ctl enable first' \
        atomic4ctl -d vol.img ls
    expect_ok atomic4ctl --json info vol.img
    json_holds '.atomic4 | not' '.gate.backups_with_gate == 0' '.gate.primary | not'
    # A plain ext4 for stock tools too, with no gate to clear first.
    e2fsck -fn vol.img >fsck.out 2>&1 || die "e2fsck: $(cat fsck.out)"
    { zeros 32K && cat db; } >db.all
    kernel_roundtrip vol.img a/db=db.all
    mount_image vol.img mnt
    [ ! -e mnt/.atomic4 ] || die "/.atomic4 is still there"
    is "$(xattrs vol.img /a/db)" ""
    is "$(xattrs vol.img /)" ""
    rm mnt/a/db
    tree_state >after
    umount mnt
    same_bytes before after

    # And once more, with a unit and a log of one's own.
    expect_ok atomic4ctl --json enable -u 64K --log-size 256K vol.img
    json_holds '.unit == 65536' '.log_size == 262144' '.device == "vol.img"' '.completed | not'
    expect_ok atomic4ctl --json disable vol.img
    json_holds '.released_inodes == []' '.device == "vol.img"'
    kernel_roundtrip vol.img
done

# --- what enable refuses: nothing is changed -----------------------------------------------------
refuses() {
    changes_nothing vol.img atomic4ctl enable "${@:2}" vol.img
    is "$STATUS" 1
    is "$(wc -l <"$ERR")" 1
    out_is_empty
    err_has "$1"
}
make_ext4 vol.img 64M
refuses 'unit 12288: want a power of two from 4096 \(the block size\) to 4194304' -u 12K
refuses 'unit 2048: want a power of two' -u 2K
refuses 'unit 8388608: want a power of two' -u 8M
refuses 'log size 1000: want a multiple' -l 1000
refuses 'log size 41943040: more than half of the volume' -l 40M
expect_fail 2 "'0x10'|suffix 'x10'" atomic4ctl enable -u 0x10 vol.img
mount_image vol.img mnt
mkdir mnt/.atomic4
umount mnt
refuses 'there is a /.atomic4 already: move it away'
for features in ^extent,^64bit quota; do
    make_ext4 vol.img 64M -O $features
    refuses "the volume (has the feature $features|is not an ext4 with extents)"
done
truncate -s 64M journal.img
mke2fs -q -b 4096 -O journal_dev journal.img
expect_fail 1 'external journal' atomic4ctl enable journal.img
# No room for the log. (The kernel keeps 2 % free, for itself.)
make_ext4 vol.img 64M -m 0
mount_image vol.img mnt
head -c 100M /dev/zero >mnt/full 2>/dev/null || true
umount mnt
refuses 'no room for a redo log of 8388608 bytes: free some space, or give a smaller log size' -l 8M
e2fsck -fn vol.img >fsck.out 2>&1 || die "e2fsck: $(cat fsck.out)"

# --- a line in fstab ---------------------------------------------------------------------------------
# In a mount namespace of its own, with another /etc/fstab in place.
make_ext4 vol.img 64M -L dbvolume
if [ -e /etc/fstab ]; then
    for name in "LABEL=dbvolume" "vol.img" "UUID=$(blkid -o value -s UUID vol.img)"; do
        echo "$name /srv/db ext4 noatime 0 2" >fstab
        expect_ok unshare -m --propagation slave bash -c \
            "mount --bind '$T/fstab' /etc/fstab && exec atomic4ctl enable vol.img"
        err_has "/etc/fstab has a line for this volume with pass number 2: .*Change it to: $name /srv/db atomic4 noatime 0 2\$"
        expect_ok atomic4ctl disable vol.img
    done
    echo "LABEL=dbvolume /srv/db ext4 noatime 0 0" >fstab
    expect_ok unshare -m --propagation slave bash -c \
        "mount --bind '$T/fstab' /etc/fstab && exec atomic4ctl enable vol.img"
    ! grep -q 'has a line' "$ERR" || die "a warning about a line that is right"
fi
