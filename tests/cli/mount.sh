# mount.atomic4 and umount.atomic4: what they mount, what they replay before anyone can see it, what
# they refuse, and what they leave behind (nothing).
. "$(dirname "$0")/lib.sh"
need_root
need_program flock findmnt strace jq

mounted() {
    findmnt -rn -o OPTIONS --mountpoint "$1" 2>/dev/null || true
}
nothing_left() {
    is "$(mounted "$T/mnt")" ""
    is "$(findmnt -rn | grep -c /run/atomic4 || true)" 0
    is "$(find /run/atomic4 -maxdepth 1 -name 'mount.*' 2>/dev/null | wc -l)" 0
}
# refused STATUS REGEX COMMAND…: the last line is ours and matches, and nothing stays.
refused() {
    local want=$1 regex=$2
    shift 2
    expect_status "$want" "$@"
    tail -1 "$ERR" | grep -E "^u?mount\.atomic4: " | grep -Eq -- "$regex" ||
        { show_output && die "the message doesn't match '$regex': $*"; }
    CHECKS=$((CHECKS + 1))
    nothing_left
}

mkdir mnt
UNDO+=("umount -l '$T/mnt'")
make_image vol.img 64M
expect_ok atomic4ctl -d vol.img prealloc /db --size 1M
pattern old 1M >old
pattern new 64K >new
expect_ok atomic4ctl -d vol.img write /db --offset 0 --from old --plain
attach dev vol.img

# --- mounting ---------------------------------------------------------------------------------
expect_ok mount.atomic4 "$dev" mnt -o rw,noatime,noatomic4d
err_is_empty
grep -q noatime <<<"$(mounted "$T/mnt")" || die "noatime isn't passed on"
same_bytes mnt/db old
# Another one finds it in use.
mkdir other
expect_status 32 mount.atomic4 "$dev" other -o noatomic4d
err_has 'mounted on .*/mnt'
expect_ok umount.atomic4 mnt
nothing_left
# By its device.
expect_ok mount.atomic4 -v "$dev" mnt -o noatomic4d
out_has 'moving it to mnt'
expect_ok umount.atomic4 "$dev"
nothing_left
expect_ok mount.atomic4 -f "$dev" mnt -o noatomic4d
nothing_left

# --- read-only --------------------------------------------------------------------------------
expect_ok mount.atomic4 "$dev" mnt -o ro
grep -qw ro <<<"$(mounted "$T/mnt")" || die "not read-only"
expect_ok umount.atomic4 mnt
expect_ok mount.atomic4 "$dev" mnt -o ro,noload
expect_ok umount.atomic4 mnt
nothing_left

# --- refusals ---------------------------------------------------------------------------------
refused 1 'data=journal' mount.atomic4 "$dev" mnt -o noatomic4d,data=journal
refused 1 'nobarrier' mount.atomic4 "$dev" mnt -o nobarrier
refused 1 'barrier=0' mount.atomic4 "$dev" mnt -o rw -o barrier=0
refused 1 'device and a directory' mount.atomic4 "$dev"
refused 1 'unknown option -q' mount.atomic4 "$dev" mnt -q
refused 1 'needs a value' mount.atomic4 "$dev" mnt -o
refused 32 'not a directory' mount.atomic4 "$dev" old -o noatomic4d
refused 32 'No such file' mount.atomic4 "$dev" none -o noatomic4d
refused 32 'No such file' mount.atomic4 /dev/none mnt -o noatomic4d
refused 32 '-o loop' mount.atomic4 vol.img mnt -o noatomic4d
refused 32 'status 32' mount.atomic4 "$dev" mnt -o noatomic4d,no_such_option
refused 32 'not mounted' umount.atomic4 mnt
make_ext4 plain.img 64M
attach plain plain.img
refused 32 '-t ext4, or run atomic4ctl enable' mount.atomic4 "$plain" mnt -o noatomic4d
detach "$plain"
tune2fs -o journal_data "$dev" >/dev/null 2>&1
refused 32 'tune2fs -o \^journal_data' mount.atomic4 "$dev" mnt -o noatomic4d
tune2fs -o ^journal_data "$dev" >/dev/null 2>&1

# --- replay -----------------------------------------------------------------------------------
# An owned session was killed after its record was durable: recovered before the kernel may look.
detach "$dev"
copy_image vol.img crashed.img
file_in_two_runs crashed.img /split
pattern both 8K >both
call=$(second_placement crashed.img /split both)
capture strace -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=KILL:when="$call" \
    atomic4ctl -d crashed.img write /split --offset 0 --engine logged --from both
has_feature crashed.img FEATURE_I28 || die "there is no live record"
attach dev crashed.img
refused 32 'replay' mount.atomic4 "$dev" mnt -o ro,noload
expect_ok mount.atomic4 "$dev" mnt -o noatomic4d
err_has 'replayed 1 record \(8192 bytes\)'
same_bytes mnt/split both
expect_ok umount.atomic4 mnt
! has_feature crashed.img FEATURE_I28 || die "the needs-replay bit is still set"
detach "$dev"
check_clean crashed.img

# --- the daemon -------------------------------------------------------------------------------
# A stand-in beside the program, which is where it is looked for first.
mkdir "$T/programs"
cp "$ATOMIC4_BIN"/{mount,umount}.atomic4 "$T/programs/"
cat >"$T/programs/atomic4d" <<'END'
#!/bin/sh
echo "$*" >"${0%/*}/called"
[ ! -e "${0%/*}/broken" ] || { echo "atomic4d: broken" >&2; exit 3; }
END
chmod +x "$T/programs/atomic4d"
attach dev vol.img
touch "$T/programs/broken"
refused 32 'atomic4d ended with status 3' "$T/programs/mount.atomic4" "$dev" mnt
err_has '^atomic4d: broken$'
is "$(cat "$T/programs/called")" "$T/mnt"
rm "$T/programs/broken" "$T/programs/called"
expect_ok "$T/programs/mount.atomic4" "$dev" mnt
is "$(cat "$T/programs/called")" "$T/mnt"
rm "$T/programs/called"
expect_ok umount.atomic4 mnt
expect_ok "$T/programs/mount.atomic4" "$dev" mnt -o ro
[ ! -e "$T/programs/called" ] || die "a read-only volume is not served"
expect_ok umount.atomic4 mnt
detach "$dev"

# The lock's holder is stopped first.
attach dev vol.img
expect_ok mount.atomic4 "$dev" mnt -o noatomic4d
mkfifo held
bash -c 'exec 9<>mnt/.atomic4/lock; flock -n 9; echo held >held; exec sleep 1000' &
holder=$!
UNDO+=("kill $holder")
is "$(cat held)" held
expect_ok umount.atomic4 -v mnt
out_has "stopping sleep \(pid $holder\)"
status=0
wait $holder || status=$?
is $status 143
nothing_left
# Busy for another reason: it stays, and that is said.
expect_ok mount.atomic4 "$dev" mnt -o noatomic4d
exec 8<mnt/db
expect_status 32 umount.atomic4 mnt
err_has 'umount\.atomic4: .*/mnt: umount\(8\) ended with status 32'
[ -n "$(mounted "$T/mnt")" ] || die "it is gone"
exec 8<&-
expect_ok umount.atomic4 mnt

# Remounting goes through, but for what can't hold.
expect_ok mount.atomic4 "$dev" mnt -o noatomic4d
expect_ok mount.atomic4 "$dev" mnt -o remount,noatime
grep -q noatime <<<"$(mounted "$T/mnt")" || die "not remounted"
expect_status 1 mount.atomic4 "$dev" mnt -o remount,nobarrier
expect_ok umount.atomic4 mnt

# --- mount(8) and umount(8) -------------------------------------------------------------------
for program in mount umount; do
    if [ ! -e "/sbin/$program.atomic4" ]; then
        ln -s "$ATOMIC4_BIN/$program.atomic4" "/sbin/$program.atomic4"
        UNDO+=("rm /sbin/$program.atomic4")
    fi
done
expect_ok mount -t atomic4 -o noatomic4d,noatime,x-test.option "$dev" mnt
grep -q noatime <<<"$(mounted "$T/mnt")" || die "noatime isn't passed on"
same_bytes mnt/db old
bash -c 'exec 9<>mnt/.atomic4/lock; flock -n 9; echo held >held; exec sleep 1000' &
holder=$!
UNDO+=("kill $holder")
is "$(cat held)" held
capture mount -o remount,ro "$T/mnt"
[ "$STATUS" -ne 0 ] || die "remounted read-only under a daemon"
# A plain umount finds umount.atomic4, since the mount remembers its helper.
expect_ok umount mnt
status=0
wait $holder || status=$?
is $status 143
nothing_left
detach "$dev"
expect_ok mount -t atomic4 -o loop,noatomic4d vol.img mnt
same_bytes mnt/db old
expect_ok umount mnt
nothing_left
echo "$T/vol.img $T/mnt atomic4 loop,noatomic4d,noauto 0 0" >fstab
expect_ok mount -T fstab "$T/mnt"
same_bytes mnt/db old
expect_ok umount mnt
nothing_left
check_clean vol.img

# --- the whole chain ---------------------------------------------------------------------------
# The real daemon is up when mount returns, what it wrote is there after umount, and neither it nor
# its socket is left.
uuid=$(blkid -o value -s UUID vol.img)
socket=/run/atomic4/$uuid.sock
pattern chain 64K >chain
daemons() {
    pgrep -f "atomic4d( .*)? $T/mnt\$" || true
}
served() {
    [ -S "$socket" ] || die "no socket: the daemon isn't ready"
    is "$(daemons | wc -l)" 2
}
not_served() {
    [ ! -e "$socket" ] || die "$socket is still there"
    is "$(daemons | wc -l)" 0
    nothing_left
}
expect_ok mount -t atomic4 -o loop vol.img mnt
served
expect_ok atomic4ctl --json write mnt/db --offset 64K --from chain
json_holds '.engine == "logged"' '.length == 65536'
slice mnt/db 65536 65536 | cmp - chain || die "other bytes in the mounted file"
expect_ok umount mnt
not_served
expect_ok atomic4ctl -d vol.img read /db --offset 64K --length 64K
same_bytes chain "$OUT"
check_clean vol.img

# As at boot; and again, as an administrator does it: what is mounted already is left alone.
echo "$T/vol.img $T/mnt atomic4 loop 0 0" >fstab
expect_ok mount -a -T fstab
served
first=$(daemons)
expect_ok mount -a -T fstab
is "$(findmnt -rn --mountpoint "$T/mnt" | wc -l)" 1
is "$(daemons)" "$first"
expect_ok atomic4ctl write mnt/db --offset 0 --length 64K --from chain
expect_ok umount mnt
not_served
expect_ok atomic4ctl -d vol.img read /db --offset 0 --length 64K
same_bytes chain "$OUT"
check_clean vol.img
