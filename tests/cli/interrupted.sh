# Allocation, enabling and disabling, killed at each of their writes: what atomic4ctl(8), section
# RECOVERY, says to do then gives a clean volume, and files that existed keep their bytes.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq strace

# for_each_write CALLBACK BASE COMMAND…: kills the command, on a copy of BASE named vol.img, at each
# of its writes in turn, and calls back.
for_each_write() {
    at_each_call pwrite64,pwritev2 signal=KILL 137 "$@"
}

# As the man page says.
follow_the_man_page() {
    capture fsck.atomic4 -fy vol.img
    [ "$STATUS" -le 1 ] || { show_output && die "fsck.atomic4 -fy: exit status $STATUS"; }
    expect_ok fsck.atomic4 -fp vol.img
    check_clean vol.img
}
keeps_its_files() {
    follow_the_man_page
    expect_ok atomic4ctl --json info vol.img
    json_holds .gate.primary '.gate.backups == .gate.backups_with_gate'
    is "$(json_value '.log.id')" "$log_id"
    is "$(atomic4ctl -d vol.img --json map /keep | jq -c .runs)" "$keep_runs"
    expect_ok atomic4ctl -d vol.img prealloc /after --size 64K
    kernel_roundtrip vol.img keep=keep
}
pattern keep 200000 >keep
pattern data 64K >data
for block in 1024 4096; do
    rm -f base.img
    expect_ok mkfs.atomic4 -q -b $block base.img 160M
    expect_ok atomic4ctl -d base.img prealloc /keep --size 200000
    expect_ok atomic4ctl -d base.img write /keep --plain --offset 0 --from keep
    expect_ok atomic4ctl -d base.img prealloc /empty --size 0
    expect_ok atomic4ctl --json info base.img
    log_id=$(json_value .log.id)
    keep_runs=$(atomic4ctl -d base.img --json map /keep | jq -c .runs)
    for_each_write keeps_its_files base.img atomic4ctl -d vol.img prealloc /new --size 1M
    for_each_write keeps_its_files base.img \
        atomic4ctl -d vol.img write /empty --offset 64K --from data
done

# --- enable, killed: the same command again --------------------------------------------------------
enable_again() {
    # What an interrupted enable left in the bitmaps is e2fsck's; where the gate is set already, the
    # rest is made with it.
    capture fsck.atomic4 -fy vol.img
    [ "$STATUS" -le 1 ] || { show_output && die "fsck.atomic4 -fy: exit status $STATUS"; }
    capture atomic4ctl enable vol.img
    [ "$STATUS" -eq 0 ] || grep -q 'is enabled already' "$ERR" || die "again: $(cat "$ERR")"
    check_clean vol.img
    kernel_roundtrip vol.img
}
rm -f plain.img
mke2fs -q -t ext4 -b 4096 plain.img 160M >/dev/null
for_each_write enable_again plain.img atomic4ctl enable vol.img

# --- disable, killed: the same command again, and where it says so, e2fsck ----------------------------
disable_again() {
    capture atomic4ctl disable --force vol.img
    [ "$STATUS" -eq 0 ] || grep -Eq 'is not enabled|e2fsck' "$ERR" || die "again: $(cat "$ERR")"
    capture fsck.atomic4 -fy vol.img
    [ "$STATUS" -le 1 ] || { show_output && die "fsck.atomic4 -fy: exit status $STATUS"; }
    capture atomic4ctl disable --force vol.img
    [ "$STATUS" -eq 0 ] || grep -q 'is not enabled' "$ERR" || die "at last: $(cat "$ERR")"
    mount_image vol.img mnt
    [ ! -e mnt/.atomic4 ] || die "/.atomic4 is still there"
    umount mnt
    kernel_roundtrip vol.img keep=keep
    expect_ok atomic4ctl enable vol.img
    expect_ok atomic4ctl disable --force vol.img
    kernel_roundtrip vol.img keep=keep
}
for_each_write disable_again base.img atomic4ctl disable --force vol.img

# Whoever wants to stop mkfs.atomic4 waits: it never leaves a half-enabled volume. (Told while mke2fs
# runs, it stops after that, with a plain ext4.)
for signal in TERM HUP INT QUIT; do
    for when in 1 4 9; do
        rm -f vol.img
        capture strace -qq -o /dev/null -e trace=pwrite64 \
            -e "inject=pwrite64:signal=$signal:when=$when" mkfs.atomic4 -q vol.img 100M
        # A signal that stayed blocked takes effect at no time; strace ends as the program does.
        is "$STATUS" 0
        check_clean vol.img
        expect_ok atomic4ctl --json info vol.img
        json_holds .gate.primary '.gate.backups == .gate.backups_with_gate'
    done
done
