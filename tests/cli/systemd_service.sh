# The units as systemd runs them, sandbox and all: a real manager, with mounts, processes and control
# groups of its own, starts atomic4d@.service by hand and by its socket.
. "$(dirname "$0")/lib.sh"
need_root
need_program unshare systemctl systemd-escape fincore jq
[ -x /lib/systemd/systemd ] || skip "/lib/systemd/systemd is not installed"
if [ -z "${A4_INSIDE:-}" ]; then
    cd / && rm -r "$T"
    A4_INSIDE=1 exec unshare --mount --propagation slave --pid --fork --mount-proc --cgroup \
        bash "$ATOMIC4_SOURCE/tests/cli/systemd_service.sh"
fi

mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# It believes that the machine was booted with systemd.
mkdir -p /run/systemd/system units
cp "$ATOMIC4_SOURCE/packaging/systemd/atomic4d@.socket" units/
sed "s|@CMAKE_INSTALL_FULL_SBINDIR@|$ATOMIC4_BIN|" \
    "$ATOMIC4_SOURCE/packaging/systemd/atomic4d@.service.in" >units/atomic4d@.service
printf '[Unit]\nDefaultDependencies=no\n' >units/nothing.target
export XDG_RUNTIME_DIR=/run SYSTEMD_UNIT_PATH=$T/units:
# A user's manager doesn't have to be process 1; this one's user is root.
/lib/systemd/systemd --user --unit=nothing.target --log-target=console >manager.out 2>&1 &
UNDO+=("kill $!")
control() {
    systemctl --user "$@"
}
wait_for [ -S /run/systemd/private ]

make_image vol.img 96M
expect_ok atomic4ctl -d vol.img prealloc /db --size 1M
mount_image vol.img 'the mnt'
UNDO+=("umount -l 'the mnt'")
instance=$(systemd-escape --path "$T/the mnt")
pattern one 16K >one
by() { atomic4ctl --socket "$socket" "$@"; }
exclusive() { by --json status 'the mnt/db' | jq -e '.ack == "exclusive"' >/dev/null; }
start() {
    capture control start "$1"
    [ "$STATUS" -eq 0 ] || { show_output && cat manager.out >&2 && die "$1 doesn't start"; }
    CHECKS=$((CHECKS + 1))
}
works() {
    wait_for exclusive
    # Somebody else may write: then the page cache has to be asked, and not to be filled.
    exec 7<>'the mnt/db'
    expect_ok by --json write 'the mnt/db' --offset 16K --from one
    json_holds '.ack == "strict"'
    exec 7>&-
    slice 'the mnt/db' 16384 16384 | cmp - one || die "other bytes"
}
# cachestat is let through: else it is as if everything was cached, and written there too.
cache_is_empty() {
    is "$(fincore --bytes --noheadings --output RES 'the mnt/db' | tr -d ' ')" 0
}

# --- the service ----------------------------------------------------------------------------
mkdir units/atomic4d@.service.d
printf '[Service]\nEnvironment="ATOMIC4D_OPTIONS=--socket-group daemon"\n' \
    >units/atomic4d@.service.d/group.conf
start "atomic4d@$instance.service"
socket=/run/atomic4/$(blkid -o value -s UUID "$(findmnt -no SOURCE "$T/the mnt")").sock
is "$(stat -c '%a %G' "$socket")" '660 daemon'
exec 7<>'the mnt/db'
expect_ok by --json write 'the mnt/db' --offset 0 --from one
json_holds '.ack == "strict"'
cache_is_empty
exec 7>&-
works
[ -s "/run/atomic4/$instance.prom" ] || die "no statistics"
expect_ok by freeze
expect_ok by thaw
control stop "atomic4d@$instance.service"
[ ! -e "$socket" ] || die "the socket is still there"
grep -q '^atomic4_writes_total{engine="logged"} 2$' "/run/atomic4/$instance.prom" ||
    die "not all writes are in the statistics"

# --- its socket -----------------------------------------------------------------------------
rm -r units/atomic4d@.service.d
control daemon-reload
start "atomic4d@$instance.socket"
socket=/run/atomic4/$instance.sock
is "$(stat -c %a "$socket")" 660
[ "$(control is-active "atomic4d@$instance.service" || true)" = inactive ] || die "it runs already"
expect_ok by ping -c 1
works
is "$(control is-active "atomic4d@$instance.service")" active
control stop "atomic4d@$instance.socket" "atomic4d@$instance.service"
umount 'the mnt'
check_clean vol.img
