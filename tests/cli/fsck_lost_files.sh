# fsck.atomic4 where e2fsck alone would give an atomic file up (F17): it comes back with its blocks.
. "$(dirname "$0")/lib.sh"
need_root
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }
inode_of() { debugfs -R "stat $2" "$1" 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p'; }

pattern data 1M >data
for options in "-b 4096" "-b 1024"; do
    rm -f sound.img
    truncate -s 64M sound.img
    # shellcheck disable=SC2086
    expect_ok mkfs.atomic4 -q $options sound.img
    debug sound.img "mkdir dir"
    expect_ok atomic4ctl -d sound.img prealloc /dir/db --size 1M --unit 16K
    expect_ok atomic4ctl -d sound.img write /dir/db --offset 0 --plain --from data
    db=$(inode_of sound.img /dir/db)
    dir=$(inode_of sound.img /dir)
    runs=$(atomic4ctl --json -d sound.img map /dir/db | jq -c .runs)
    block=$(debugfs -R "blocks /dir" sound.img 2>/dev/null | tr -d ' ')
    rm -f vol.img
    while IFS='|' read -r what command place; do
        cp --sparse=always sound.img vol.img
        debug vol.img "$command"
        ! cmp -s sound.img vol.img || die "$what: changed nothing"
        changes_nothing vol.img fsck.atomic4 -fn vol.img
        [ $((STATUS & 4)) = 4 ] || { show_output; die "$what: -n: exit status $STATUS"; }
        capture fsck.atomic4 -fy vol.img
        [ "$STATUS" = 1 ] || { show_output; die "$what: exit status $STATUS"; }
        expect_ok fsck.atomic4 -fp vol.img
        expect_ok atomic4ctl --json -d vol.img map "$place"
        is "$(jq -c .runs "$OUT")" "$runs"
        expect_ok atomic4ctl -d vol.img read "$place" --offset 0 --length 1M
        cmp data "$OUT"
        check_clean vol.img
        e2fsck_clean vol.img
        rm vol.img
    done <<END
no mode|sif <$db> mode 0|/dir/db
a directory's mode|sif <$db> mode 040755|/dir/db
a socket's mode|sif <$db> mode 0140755|/dir/db
no name|unlink /dir/db|/lost+found/#$db
no link count|sif <$db> links_count 0|/dir/db
a wrong link count|sif <$db> links_count 7|/dir/db
the directory is no directory|sif <$dir> mode 0100644|/lost+found/#$db
the directory is cleared|clri <$dir>|/lost+found/#$db
the directory's block is zeroed|zap_block -f /dir 0|/lost+found/#$db
END
done

# --- the names of log and lock file: without them nothing mounts the volume as atomic4 -----------------------------
pattern plain 12K >plain
log=$(inode_of sound.img /.atomic4/log)
lock=$(inode_of sound.img /.atomic4/lock)
directory=$(inode_of sound.img /.atomic4)
named_again() {
    is "$(inode_of vol.img /.atomic4/log)" "$log"
    [ -n "$(inode_of vol.img /.atomic4/lock)" ] || die "no lock file"
    expect_ok atomic4ctl -d vol.img read /dir/db --offset 0 --length 1M
    cmp data "$OUT"
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}
# Names that are gone. For e2fsck -p an inode without a name is a reason to stop.
for how in "lock -fp" "log -fy"; do
    read -r name mode <<<"$how"
    copy_image sound.img vol.img
    debug vol.img "unlink /.atomic4/$name"
    [ "$name" = log ] || debug vol.img "clri <$lock>"
    changes_nothing vol.img fsck.atomic4 -fn vol.img
    is "$STATUS" 4
    out_has '#36 redo log: /.atomic4/log or /.atomic4/lock isn.t there'
    expect_status 1 atomic4ctl -d vol.img check
    out_has '#36'
    expect_status 1 fsck.atomic4 "$mode" vol.img
    named_again
done
# The log is named as another file's, and so can't stay: that name is the other file's business.
copy_image sound.img vol.img
debug vol.img "unlink /.atomic4/log"
debug vol.img "ln <$lock> /.atomic4/log"
expect_status 1 fsck.atomic4 -fy vol.img
named_again
is "$(inode_of vol.img "/.atomic4.$directory/log")" "$lock"
# The directory is something else.
copy_image sound.img vol.img
debug vol.img "unlink /.atomic4"
debug vol.img "write plain .atomic4"
plain=$(inode_of vol.img /.atomic4)
expect_status 1 fsck.atomic4 -fy vol.img
named_again
expect_ok atomic4ctl -d vol.img read "/.atomic4.$plain" --offset 0 --length 12K
cmp plain "$OUT"

# --- bits that flip, so that the inode's checksum is wrong -----------------------------------------------------------
# For stock e2fsck one without links is gone, also with -p, and one of another type is garbage.
for flipped in links:26:00 mode:1:c1 mode:1:01; do
    for shape in "one name" "two names" "no journal"; do
        IFS=: read -r what at byte <<<"$flipped"
        copy_image sound.img vol.img
        [ "$shape" != "two names" ] || debugfs -w -f - vol.img >/dev/null 2>&1 <<<"ln /dir/db /also
sif /dir/db links_count 2"
        if [ "$shape" = "no journal" ]; then
            debug vol.img "feature -has_journal"
            expect_status 1 fsck.atomic4 -fy vol.img
        fi
        copy_image vol.img before.img
        debugfs -R "imap /dir/db" vol.img 2>/dev/null | sed -n 's/.*located at block \([0-9]*\), offset 0x\([0-9a-f]*\)/\1 \2/p' >place
        read -r block offset <place
        # shellcheck disable=SC2059
        patch vol.img $((block * 1024 + 16#$offset + at)) <(printf "\x$byte")
        ! cmp -s before.img vol.img || die "$what: changed nothing"
        expect_status 4 fsck.atomic4 -fp vol.img
        out_has '#(22|31) /(dir/db|also)'
        expect_status 1 fsck.atomic4 -fy vol.img
        is "$(atomic4ctl --json -d vol.img map /dir/db | jq -c .runs)" "$runs"
        expect_ok atomic4ctl -d vol.img read /dir/db --offset 0 --length 1M
        cmp data "$OUT"
        check_clean vol.img
        e2fsck_clean vol.img
        expect_ok fsck.atomic4 -fp vol.img
    done
done

# --- the flag that says extents ------------------------------------------------------------------------------------
# What is taken for block numbers without it are anybody's blocks, on a volume that has so many.
pattern old 16K >new
flags_of() { debugfs -R "stat $2" "$1" 2>/dev/null | sed -n 's/.*Flags: 0x\([0-9a-f]*\).*/\1/p'; }
mapped_as_before() {
    is "$(atomic4ctl --json -d vol.img map /db | jq -c .runs)" "$runs"
    expect_ok atomic4ctl -d vol.img read /db --offset 0 --length "$1"
    cmp "$2" "$OUT"
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}
for options in "-O metadata_csum" "-O ^metadata_csum"; do
    for depth in 0 1; do
        rm -f sound.img
        truncate -s 200M sound.img
        # shellcheck disable=SC2086
        expect_ok mkfs.atomic4 -q -b 1024 $options sound.img
        expect_ok atomic4ctl -d sound.img prealloc /db --size 16K --unit 16K
        rm -f data_db
        for i in $(seq 0 $((depth * 5))); do  # extents with holes between
            expect_ok atomic4ctl -d sound.img write /db --offset $((i * 32))K --plain --from new
            dd if=new of=data_db bs=32K seek="$i" conv=notrunc status=none
        done
        runs=$(atomic4ctl --json -d sound.img map /db | jq -c .runs)
        is "$(debugfs -R 'ex /db' sound.img 2>/dev/null | sed -n 's,^ *[0-9]*/ *\([0-9]*\) .*,\1,p' | sort -u)" $depth
        size=$(wc -c <data_db)
        for mode in -fp -fy; do
            copy_image sound.img vol.img
            debug vol.img "sif /db flags $((16#$(flags_of vol.img /db) & ~16#80000))"
            expect_fail 1 'it has an extent tree, but not the flag for it: the volume needs e2fsck' \
                atomic4ctl -d vol.img adopt /db --unit 16K
            changes_nothing vol.img fsck.atomic4 -fn vol.img
            is $((STATUS & 4)) 4  # e2fsck -n, which leaves it as it is, may give up then
            expect_status 1 fsck.atomic4 $mode vol.img
            out_has "#16 /db: an atomic inode's mapping can't be read: inode [0-9]+: it has an extent tree"
            mapped_as_before "$size" data_db
        done
        # The log's: what it holds isn't given up for that.
        copy_image sound.img vol.img
        for field in "mnt_count 5" "mtime 20260102030405"; do debug vol.img "ssv $field"; done
        pattern newer 16K >newest
        leave_record vol.img /db newest
        log=$(inode_of sound.img /.atomic4/log)
        debug_live vol.img "sif <$log> flags $((16#$(flags_of sound.img "<$log>") & ~16#80000))"
        expect_status 4 fsck.atomic4 -fp vol.img
        expect_status 1 fsck.atomic4 -fy vol.img
        cp data_db newer
        dd if=newest of=newer conv=notrunc status=none
        mapped_as_before "$size" newer
    done
done

# --- xattrs that only e2fsck has something against ---------------------------------------------------------------
# It clears them all, and with them the unit.
rm -f vol.img
truncate -s 32M vol.img
expect_ok mkfs.atomic4 -q -b 1024 -I 128 -O ^metadata_csum vol.img
expect_ok atomic4ctl -d vol.img prealloc /db --size 64K --unit 16K
debug vol.img "ea_set /db user.name value"
runs=$(atomic4ctl --json -d vol.img map /db | jq -c .runs)
head -c 64K /dev/zero >zeros
block=$(debugfs -R "stat /db" vol.img 2>/dev/null | sed -n 's/^File ACL: *\([0-9]*\).*/\1/p')
slice vol.img $((block * 1024 + 32 + 16)) 4 | cmp - <(printf name)
patch vol.img $((block * 1024 + 32 + 12)) <(printf '\0\0\0\0')  # its hash
expect_status 1 fsck.atomic4 -fy vol.img
out_has '/db \(inode [0-9]+\): has lost its unit: it gets it back'
mapped_as_before 64K zeros

# --- a layout that can be put right only when e2fsck has been there ------------------------------------------------
for mode in -fp -fy; do
    rm -f vol.img
    truncate -s 32M vol.img
    expect_ok mkfs.atomic4 -q -b 1024 vol.img
    expect_ok atomic4ctl -d vol.img prealloc /db --size 64K --unit 16K
    debug vol.img "ea_set /db trusted.atomic4.unit 65536"
    debug vol.img "sif /db blocks 2"
    capture fsck.atomic4 $mode vol.img
    is "$STATUS" 1
    out_lacks released
    runs=$(atomic4ctl --json -d vol.img map /db | jq -c .runs)
    is "$(atomic4ctl --json -d vol.img map /db | jq .unit)" 65536
    mapped_as_before 64K zeros
done
