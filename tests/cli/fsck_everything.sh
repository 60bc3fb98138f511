# fsck.atomic4 on a volume that is dirty in every way at once, after a power cut under the daemon: an
# ext4 journal to replay, live redo records whose bytes never reached the file, blocks that another
# file claims, a wrong bitmap. One -y run brings it back, with each acknowledged write.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }
inode_of() { debugfs -R "stat $2" "$1" 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p'; }
runs_of() { atomic4ctl --json -d "$1" map "$2" | jq -c .runs; }

pattern plain 12K >plain
pattern old 1M >old
truncate -s 96M vol.img
expect_ok mkfs.atomic4 -q -b 1024 vol.img
debug vol.img "write plain low"
expect_ok atomic4ctl -d vol.img prealloc /db --size 1M --unit 16K
expect_ok atomic4ctl -d vol.img write /db --offset 0 --plain --from old
runs=$(runs_of vol.img /db)
start=$(jq '.[0].device_offset / 1024' <<<"$runs")
debug vol.img "sif <$(inode_of vol.img /low)> block[5] $((start + 40))"

mount_image vol.img mnt
atomic4d --foreground --socket "$T/sock" mnt >daemon.out 2>&1 &
DAEMON=$!
UNDO+=("pkill -KILL -P $DAEMON; kill -KILL $DAEMON; wait $DAEMON")
answers() { [ -S "$T/sock" ] && atomic4ctl --socket "$T/sock" ping -c 1 >/dev/null 2>&1; }
wait_for answers
mkdir mnt/new
cp plain mnt/new/file
# A client writes one unit after the other and says what has been acknowledged.
: >acked
(
    for ((i = 0; ; i = (i + 1) % 64)); do
        pattern "round $i $RANDOM" 16K >"next.$i"
        atomic4ctl --socket "$T/sock" write mnt/db --offset $((i * 16))K --from "next.$i" >/dev/null
        mv "next.$i" "acked.$i"
        echo "$i" >>acked
    done
) 2>/dev/null &
CLIENT=$!
UNDO+=("kill $CLIENT; wait $CLIENT")
many() { [ "$(wc -l <acked)" -ge "$1" ]; }
wait_for many 20
sync -f mnt
# The power cut: what the disk has at a moment when records are live.
live() {
    local done
    done=$(wc -l <acked)
    wait_for many $((done + 1))
    # Somewhere in the next write, as it comes.
    sleep "0.00$((RANDOM % 10))"
    kill -STOP $DAEMON
    cp --sparse=always vol.img cut.img
    atomic4ctl --json info cut.img >info.json
    jq -e '.log.live_records > 0' info.json >/dev/null && return
    kill -CONT $DAEMON
    return 1
}
wait_for live
kill $CLIENT
{ wait $CLIENT || true; } 2>/dev/null
# With its keeper, which would wait for the next one.
pkill -KILL -P $DAEMON || true
kill -KILL $DAEMON
{ wait $DAEMON || true; } 2>/dev/null
umount -l mnt
# A group that nobody has used: its bitmap has a wrong bit, and so a wrong checksum.
bitmap=$(dumpe2fs cut.img 2>/dev/null | sed -n 's/^ *Block bitmap at \([0-9]*\).*/\1/p' | tail -1)
printf '\125' >byte
patch cut.img $((bitmap * 1024 + 20)) byte

has_feature cut.img needs_recovery
changes_nothing cut.img fsck.atomic4 -n cut.img
[ $((STATUS & 4)) = 4 ] || { show_output; die "-n: exit status $STATUS"; }
out_has 'its journal needs recovery: what is checked is the state before that'
out_has '#12 redo log: the redo log holds records that are not replayed: [0-9]+ records?.*\. Replay\? no'
expect_status 1 fsck.atomic4 -y cut.img
out_has '#23 redo log: records of the redo log were replayed: [0-9]+ record'
out_has '#19 /low: an inode claims blocks of an atomic file, too'
expect_ok fsck.atomic4 -fp cut.img
is "$(runs_of cut.img /db)" "$runs"
check_clean cut.img
e2fsck_clean cut.img
mount_image cut.img after
for ((i = 0; i < 64; ++i)); do
    slice after/db $((i * 16384)) 16384 >is
    if [ -e "next.$i" ] && cmp -s is "next.$i"; then continue; fi  # that was under way
    if [ -e "acked.$i" ]; then
        cmp is "acked.$i" || die "acknowledged write of unit $i is lost"
    else
        cmp is <(slice old $((i * 16384)) 16384)
    fi
done
cmp plain after/new/file
