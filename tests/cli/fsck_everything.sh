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
truncate -s 96M vol.img
expect_ok mkfs.atomic4 -q -b 1024 vol.img
debug vol.img "write plain low"
expect_ok atomic4ctl -d vol.img prealloc /db --size 4M --unit 16K
runs=$(runs_of vol.img /db)
start=$(jq '.[0].device_offset / 1024' <<<"$runs")
debug vol.img "sif <$(inode_of vol.img /low)> block[5] $((start + 40))"

mount_image vol.img mnt
atomic4d --foreground --socket "$T/sock" mnt >daemon.out 2>&1 &
DAEMON=$!
UNDO+=("pkill -KILL -P $DAEMON; kill -KILL $DAEMON; wait $DAEMON")
answers() { [ -S "$T/sock" ] && atomic4ctl --socket "$T/sock" ping -c 1 >/dev/null 2>&1; }
wait_for answers
# Who serves is the other one's child.
SERVING=$(pgrep -P $DAEMON)
mkdir mnt/new
cp plain mnt/new/file
# A storage engine: 16 writes in flight, and a record of what has been acknowledged.
client_pages write "$T/sock" mnt/db record >writer.out 2>&1 &
WRITER=$!
UNDO+=("kill -KILL $WRITER; wait $WRITER")
under_way() { [ -e record ] && [ "$(tr -d '\0' <record | wc -c)" -gt 200 ]; }
wait_for under_way
# The power cut: what the disk has at a moment when records are live.
live() {
    sync -f mnt
    kill -STOP $SERVING
    cp --sparse=always vol.img cut.img
    atomic4ctl --json info cut.img >info.json
    jq -e '.log.live_records > 0' info.json >/dev/null && return
    kill -CONT $SERVING
    return 1
}
wait_for live
kill -KILL $WRITER
{ wait $WRITER || true; } 2>/dev/null
kill -KILL $SERVING $DAEMON
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
expect_ok client_pages verify after/db record
out_has '^verified: 256 pages, none torn; [1-9][0-9]* with acknowledged writes, all there'
cmp plain after/new/file
