# fsck.atomic4 where the primary superblock is of no use: the atomic files stay as a copy of it shows
# them, the gate never leaves, and what is live in the redo log is not lost.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq python3 strace
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }
inode_of() { debugfs -R "stat $2" "$1" 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p'; }
runs_of() { atomic4ctl --json -d "$1" map "$2" | jq -c .runs; }
zeros 1024 >nothing
lose_primary() { patch "$1" 1024 nothing; }

pattern data 64K >data
pattern new 8K >new
pattern plain 12K >plain
# Shared blocks: stock e2fsck would move /db, which has the lower number. MKE2FS-OPTIONS…
volume() {
    rm -f vol.img
    truncate -s 64M vol.img
    expect_ok mkfs.atomic4 -q "$@" vol.img
    expect_ok atomic4ctl -d vol.img prealloc /db --size 1M --unit 16K
    expect_ok atomic4ctl -d vol.img write /db --offset 0 --from data
    debug vol.img "write plain high"
    before=$(runs_of vol.img /db)
    size=$(dumpe2fs -h vol.img 2>/dev/null | sed -n 's/^Block size: *//p')
    copy_image vol.img sound.img
    debug vol.img "sif <$(inode_of vol.img /high)> block[5] $(($(jq '.[0].device_offset' <<<"$before") / size))"
}
repaired() {
    is "$(runs_of vol.img /db)" "$before"
    expect_ok atomic4ctl -d vol.img read /db --offset 0 --length 64K
    cmp "$1" "$OUT"
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}

# -p leaves it to somebody, and -y has e2fsck go by the copy: goes_by_the_copy MODE REASON
goes_by_the_copy() {
    changes_nothing vol.img fsck.atomic4 "$1" vol.img
    is "$STATUS" 4
    expect_status 1 fsck.atomic4 -fy vol.img
    out_has "$2"
    repaired data
}

# --- found where e2fsck looks, too ------------------------------------------------------------------
volume -b 1024
lose_primary vol.img
changes_nothing vol.img fsck.atomic4 -fn vol.img
[ $((STATUS & 4)) = 4 ] || die "-n: exit status $STATUS"
out_has '^[0-9]+ atomic files protected as a copy of the superblock shows them$'
# There is a decision to be made, and -p makes none.
changes_nothing vol.img fsck.atomic4 -p vol.img
is "$STATUS" 4
out_has 'RUN fsck MANUALLY'
expect_status 1 fsck.atomic4 -fy vol.img
repaired data

# --- where only the user knows ------------------------------------------------------------------------
for options in "-b 1024 -g 2048" "-b 1024 -O bigalloc -C 4096 -g 8192"; do
    # shellcheck disable=SC2086
    volume $options
    first=$(dumpe2fs vol.img 2>/dev/null | sed -n 's/^ *Backup superblock at \([0-9]*\),.*/\1/p' | head -1)
    lose_primary vol.img
    copy_image vol.img lost.img
    # Nothing tells that this is an atomic4 volume, or any: e2fsck says so.
    changes_nothing vol.img fsck.atomic4 -fy vol.img
    is "$STATUS" 8
    out_has 'alternate superblock'
    expect_status 1 fsck.atomic4 -fy -b "$first" -B 1024 vol.img
    out_has 'atomic files protected as a copy'
    repaired data
    copy_image lost.img vol.img
    expect_status 1 fsck.atomic4 -fy -b "$first" vol.img
    repaired data
    # A wrong place is e2fsck's to complain of.
    copy_image lost.img vol.img
    changes_nothing vol.img fsck.atomic4 -fy -b $((first + 1)) -B 1024 vol.img
    is "$STATUS" 8
done

# --- live records: the needs-replay bit was in the primary only ---------------------------------------
volume -b 1024
# Mounted before: that is in the primary only, and records go by it.
debug vol.img "ssv mnt_count 5"
debug vol.img "ssv mtime 20260102030405"
leave_record vol.img /db new
has_feature vol.img FEATURE_I28
lose_primary vol.img
cp data newer
patch newer 0 new
copy_image vol.img live.img
expect_status 1 fsck.atomic4 -fy vol.img
out_has '#23 redo log: records of the redo log were replayed: 1 record'
repaired newer
# Killed after e2fsck has made the primary anew: no kernel mounts it before the records are replayed.
copy_image live.img vol.img
"$(command -v fsck.atomic4)" -fy vol.img >/dev/null 2>&1 &
FSCK=$!
for ((i = 0; i < 1000; ++i)); do
    if ! cmp -s <(slice vol.img 1024 1024) nothing; then
        kill -KILL $FSCK 2>/dev/null || true
        break
    fi
done
{ wait $FSCK || true; } 2>/dev/null
has_feature vol.img FEATURE_I28 || expect_ok fsck.atomic4 -fp vol.img
capture fsck.atomic4 -fy vol.img
[ $((STATUS & ~1)) = 0 ] || die "exit status $STATUS"
repaired newer

# --- a primary that says something else ---------------------------------------------------------------
for field in 32 24; do  # blocks per group, block size
    volume -b 1024
    printf '\001' >byte
    patch vol.img $((1024 + field)) byte
    changes_nothing vol.img fsck.atomic4 -fn vol.img
    [ $((STATUS & 12)) != 0 ] || die "-n: exit status $STATUS"
    expect_status 1 fsck.atomic4 -fy vol.img
    repaired data
done

# --- a wrong checksum, while the journal waits -----------------------------------------------------------
volume -b 1024
zeros 1K >block
debugfs -w -f <(printf 'jo\njw -b 60000 block\njc\n') vol.img >/dev/null 2>&1
has_feature vol.img needs_recovery
patch vol.img 2044 <(printf '\001\002\003\004')
expect_status 1 fsck.atomic4 -fy vol.img
out_has 'agrees with a copy: repaired'
repaired data

# --- a primary with a right checksum that says nonsense ------------------------------------------------------
# Stock e2fsck believes some of them, and clears all inodes.
for field in "blocks_per_group 16384" "log_block_size 1" "rev_level 0" "feature_incompat 0x282" \
    "journal_inum 0" "first_ino 0" "inode_size 128" "inodes_per_group 1024"; do
    volume -b 1024
    debug vol.img "ssv $field"
    goes_by_the_copy -fp "its superblock has a right checksum, but leads nowhere: e2fsck goes by the copy at block 8193"
done

# The same while the journal waits: it is replayed, by the copy, before anything is made of the inodes.
volume -b 1024
pattern journaled 1K >block
debugfs -w -f <(printf 'jo\njw -b 60000 block\njc\n') vol.img >/dev/null 2>&1
has_feature vol.img needs_recovery
patch vol.img $((1024 + 88)) <(printf '\200\000')  # inodes of 128 bytes
set_needs_replay vol.img off                       # the checksum
is "$(slice vol.img $((1024 + 88)) 2 | od -An -tu2 | tr -d ' ')" 128
expect_status 1 fsck.atomic4 -fy vol.img
out_has 'e2fsck goes by the copy at block 8193'
cmp <(slice vol.img $((60000 * 1024)) 1024) block
repaired data

# --- descriptors that have lost their checksum, and where the tables are ---------------------------------------
for bytes in '\032\001' '\330\124'; do
    volume -b 1024
    # shellcheck disable=SC2059
    patch vol.img $((2048 + 8)) <(printf "$bytes")
    goes_by_the_copy -p 'its group descriptors are damaged: e2fsck goes by their copy behind the superblock at block 8193'
done

# --- descriptors with a right checksum that call inodes unused which are in use -----------------------------------
# Stock e2fsck believes the flag, and clears them all.
volume -b 1024
debug vol.img "set_bg 0 flags 1"
debug vol.img "set_bg 0 checksum calc"
goes_by_the_copy -fp 'e2fsck goes by their copy'
# This it finds out; /db is protected by then.
volume -b 1024
debug vol.img "set_bg 0 itable_unused 2048"
debug vol.img "set_bg 0 checksum calc"
expect_status 1 fsck.atomic4 -fy vol.img
out_has '#19 /high: an inode claims blocks of an atomic file, too'
out_has 'Group descriptor 0 has invalid unused inodes count 2048'
repaired data

# --- e2fsck is ended while it goes by the copy -----------------------------------------------------------------
# What it had leave to change is as it was; the primary, which shows something else, isn't gone by. The first run of
# this one wants to change the inode of /db, the next ones clear it, and go on to its data.
mkdir tools
cat >tools/e2fsck <<END
#!/bin/sh
real=$(command -v e2fsck)
[ "\$1" != -V ] || exec "\$real" -V
for device; do
    case \$device in *journal_only* | -n | -*n*) exec "\$real" "\$@" ;; esac
done
echo run >>"$T/runs"
put() { dd if=/dev/zero of="\$device" bs=1 seek="\$1" count="\$2" conv=notrunc 2>/dev/null; }
read -r inode data <"$T/places"
[ \$(wc -l <"$T/runs") != 1 ] || put \$((inode + 32)) 4
put "\$inode" 128
put "\$data" 1024
END
chmod +x tools/e2fsck
for by in "" "-b 8193 -B 1024"; do
    volume -b 1024
    copy_image sound.img vol.img
    debugfs -R "imap /db" vol.img 2>/dev/null | sed -n 's/.*located at block \([0-9]*\), offset 0x\([0-9a-f]*\)/\1 \2/p' >place
    read -r block offset <place
    inode=$((block * 1024 + 16#$offset))
    echo "$inode $(jq '.[0].device_offset' <<<"$before")" >places
    slice vol.img "$inode" 256 >inode
    debug vol.img "ssv inode_size 128"
    rm -f runs
    # shellcheck disable=SC2086
    expect_status 5 env PATH="$T/tools:$PATH" fsck.atomic4 -fy $by vol.img
    is "$(wc -l <runs)" 3
    out_has 'e2fsck wants to change what is protected, whatever is done about it'
    slice vol.img "$inode" 256 | cmp - inode
    expect_status 1 fsck.atomic4 -fy vol.img
    repaired data
done

# --- no copy at all ------------------------------------------------------------------------------------------------
# A single group, and a primary whose checksum can't be proved.
rm vol.img
truncate -s 7M vol.img
expect_ok mkfs.atomic4 -q -b 1024 -l 256K vol.img
patch vol.img 2044 <(printf '\001\002\003\004')
changes_nothing vol.img fsck.atomic4 -p vol.img
is "$STATUS" 4
out_has 'RUN fsck MANUALLY'
changes_nothing vol.img fsck.atomic4 -fy vol.img
[ $((STATUS & 8)) != 0 ] || die "exit status $STATUS"
out_has "as it is, its atomic files can't be protected: e2fsck goes first"
