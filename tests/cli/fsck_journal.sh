# fsck.atomic4 where the ext4 journal waits for its replay: that is all that e2fsck may do before
# atomic files are protected.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq script
[ -c /dev/fuse ] || skip "no /dev/fuse"

debug() { debugfs -w -R "$2" "$1" >/dev/null 2>&1; }
block_of() { debugfs -R "blocks $2" "$1" 2>/dev/null | awk '{ print $1 }'; }
runs_of() { atomic4ctl --json -d "$1" map "$2" | jq -c .runs; }
# journal IMAGE [-c]: a transaction that writes zeros to a block that nobody uses; with checksums.
journal() {
    zeros 1K >block
    debugfs -w -f <(printf 'jo %s\njw -b 30000 block\njc\n' "${2:-}") "$1" >/dev/null 2>&1
    has_feature "$1" needs_recovery
}

pattern data 256K >data
pattern plain 12K >plain
truncate -s 32M sound.img
expect_ok mkfs.atomic4 -q -b 1024 -l 256K sound.img
debug sound.img "write plain low"
debug sound.img "write plain high"
expect_ok atomic4ctl -d sound.img prealloc /db --size 256K --unit 16K
expect_ok atomic4ctl -d sound.img write /db --offset 0 --plain --from data
before=$(runs_of sound.img /db)
repaired() {
    is "$(runs_of vol.img /db)" "$before"
    expect_ok atomic4ctl -d vol.img read /db --offset 0 --length 256K
    cmp data "$OUT"
    debugfs -R "dump low is" vol.img >/dev/null 2>&1
    cmp plain is
    check_clean vol.img
    e2fsck_clean vol.img
    expect_ok fsck.atomic4 -fp vol.img
}

# Nothing else is wrong.
copy_image sound.img vol.img
journal vol.img
copy_image vol.img waiting.img
expect_status 1 fsck.atomic4 -p vol.img
out_has 'recovering journal'
repaired

# stops_and_is_repaired REASON: -p changes nothing, and -y everything that has to be.
stops_and_is_repaired() {
    changes_nothing vol.img fsck.atomic4 -p vol.img
    is "$STATUS" 4
    out_has "$1"
    expect_status 1 fsck.atomic4 -y vol.img
    repaired
}
# A journal that is no more: -p stops, else what stands there is checked, atomic files first.
for damage in "" "sif /db links_count 0" "sif /db mode 0" "ssv state 3"; do
    copy_image waiting.img vol.img
    [ -z "$damage" ] || debug vol.img "$damage"
    patch vol.img $(($(block_of vol.img '<8>') * 1024)) <(zeros 4)
    stops_and_is_repaired "its journal can't be replayed: its superblock is none"
done
for at in 12 252; do  # block size, checksum
    copy_image sound.img vol.img
    journal vol.img -c
    patch vol.img $(($(block_of vol.img '<8>') * 1024 + at)) <(printf '\125\125\125\125')
    stops_and_is_repaired "its journal can't be replayed: its superblock"
done

# Asked, and answered no: nothing is done.
copy_image waiting.img vol.img
patch vol.img $(($(block_of vol.img '<8>') * 1024)) <(zeros 4)
remember vol.img
printf 'n\n' | script -qec "fsck.atomic4 vol.img" /dev/null >said 2>&1 || true
grep -q 'what it holds is lost. Go on without it? (y/n)' said || { cat said >&2; die "it wasn't asked"; }
unchanged vol.img

# One of a kind that nobody knows is not given up.
copy_image waiting.img vol.img
patch vol.img $(($(block_of vol.img '<8>') * 1024 + 4)) <(printf '\125\125\125\125')
changes_nothing vol.img fsck.atomic4 -y vol.img
is "$STATUS" 4
out_has "e2fsck can't use its journal"

# A damaged descriptor: -p would go by it, and -y goes by its copy.
for byte in 0 8; do  # of the first: where block bitmap and inode table are
    copy_image waiting.img vol.img
    patch vol.img $((2048 + byte)) <(printf '\063')
    stops_and_is_repaired 'group descriptors are damaged, and its journal needs recovery'
done

# A wrong option is no reason to give up a journal.
copy_image waiting.img vol.img
capture fsck.atomic4 -y -E no_such_option vol.img
[ $((STATUS & 16)) != 0 ] || die "exit status $STATUS"
expect_ok fsck.atomic4 -fp vol.img
repaired

# e2fsck -E journal_only would go on where counts of a descriptor can't be: then somebody who claims
# blocks of /db gets copies all the same, and not /db.
copy_image waiting.img vol.img
miscount() { debugfs -w -f <(printf 'set_bg 3 free_inodes_count 0\nset_bg 3 checksum calc\n') vol.img >/dev/null 2>&1; }
high=$(debugfs -R "stat /high" vol.img 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\) .*/\1/p')
debug vol.img "sif <$high> block[5] $(jq '.[0].device_offset / 1024' <<<"$before")"
miscount
expect_status 1 fsck.atomic4 -fy vol.img
out_has '#19 /high: an inode claims blocks of an atomic file, too'
repaired
copy_image waiting.img vol.img
miscount
expect_status 1 fsck.atomic4 -p vol.img
repaired

# An e2fsck that takes the journal for good, and then can't replay it: nothing else is done.
mkdir tools
cat >tools/e2fsck <<END
#!/bin/sh
case "\$*" in
    -V) exec $(command -v e2fsck) -V ;;
    *-n*) exit 0 ;;
    *journal_only*) exit 8 ;;
esac
echo checked >>$T/checked
END
chmod +x tools/e2fsck
copy_image waiting.img vol.img
changes_nothing vol.img env PATH="$T/tools:$PATH" fsck.atomic4 -y vol.img
is "$STATUS" 8
out_has 'its journal could not be replayed: nothing else is done'
[ ! -e checked ] || die "it was checked all the same"
