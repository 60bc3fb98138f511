# prealloc, write, read, status, map, check, ls: their reports as text and as JSON, and their errors.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq script

make_image vol.img 96M
on() { atomic4ctl -d vol.img "$@"; }

# --- prealloc ---------------------------------------------------------------------------------
expect_ok on prealloc /db --size 1M
out_has '^/db: 1M in 64 aligned units of 16K, inode [0-9]+$'
err_is_empty
expect_ok on --json prealloc /odd --size 100000 --unit 64K --mode 0600 --owner 1000:2000
json_holds '.path == "/odd"' '.size == 100000' '.unit == 65536' '.units == 2' '.inode > 11'
expect_ok on --json prealloc /empty --size 0
json_holds '.size == 0' '.units == 0'
mount_image vol.img mnt
mkdir mnt/dir
ln -s dir/inner mnt/link
ln -s loop mnt/loop
ln -s .atomic4 mnt/ours
pattern plain 10000 >mnt/plain
truncate -s 1M mnt/holes
umount mnt
expect_ok on prealloc /dir/inner --size 4K --unit 4K --mode 4755 --owner 4294967294:65536
out_has '^/dir/inner: 4K in 1 aligned units of 4K'
mount_image vol.img mnt
is "$(stat -c '%a %u:%g %s %b' mnt/odd)" "600 1000:2000 100000 $((131072 / 512))"
is "$(stat -c '%a %u:%g %s %b' mnt/empty)" "644 0:0 0 0"
is "$(stat -c '%a %u:%g %s' mnt/dir/inner)" "4755 4294967294:65536 4096"
zeros 1M | cmp - mnt/db || die "a new file isn't zero"
umount mnt
is "$(xattrs vol.img /odd)" 'trusted.atomic4.unit (5) = "65536"'

expect_fail 1 '/db: .*exists' on prealloc /db --size 1M
expect_fail 1 '/none' on prealloc /none/x --size 1M
expect_fail 1 '/plain' on prealloc /plain/x --size 1M
expect_fail 1 'not a name for a file' on prealloc / --size 1M
expect_fail 1 'not a name for a file' on prealloc /dir/.. --size 1M
for path in /x/ /x// /dir/ /plain/; do
    changes_nothing vol.img on prealloc $path --size 1M
    is "$STATUS" 1
    err_has "^atomic4ctl: $path: names a directory, because of the slash at its end\$"
done
expect_fail 1 'a name has at most 255 bytes' on prealloc "/$(printf 'x%.0s' $(seq 256))" --size 1M
for path in /.atomic4/z /.atomic4/../.atomic4/z /ours/z; do
    changes_nothing vol.img on prealloc $path --size 4K
    is "$STATUS" 1
    err_has "^atomic4ctl: $path: /.atomic4 belongs to atomic4: create the file elsewhere\$"
done
expect_fail 1 'unit 12288: want a power of two from 4096 \(the block size\) to 4194304' \
    on prealloc /x --size 1M --unit 12K
expect_fail 1 'unit 2048: want' on prealloc /x --size 1M --unit 2K
expect_fail 1 'unit 0: want' on prealloc /x --size 1M --unit 0
changes_nothing vol.img on prealloc /x --size 1G
is "$STATUS" 1
err_has '^atomic4ctl: /x: .*(No space left|no aligned free run|free)'
changes_nothing vol.img on prealloc /x --size 100T
is "$STATUS" 1
expect_fail 2 'size is required' on prealloc /x
expect_fail 2 "'-1'" on prealloc /x --size -1
expect_fail 2 "unknown suffix 'Q'" on prealloc /x --size 1Q
expect_fail 2 'too large' on prealloc /x --size 99999999999999999999
expect_fail 2 'too large' on prealloc /x --size 16777216T
expect_fail 2 'want an octal mode' on prealloc /x --size 1M --mode 999
expect_fail 2 'want an octal mode' on prealloc /x --size 1M --mode rwx
for owner in 1 a:b 1:-1 :1 1: 4294967295:0; do
    expect_fail 2 'want UID:GID as numbers' on prealloc /x --size 1M --owner $owner
done
kernel_roundtrip vol.img

# --- write and read ---------------------------------------------------------------------------
pattern one 16K >one
pattern two 64K >two
expect_ok on write /db --offset 16K --from one
out_has '^/db: 16384 bytes at 16384, logged \(not native: .*\)$'
err_is_empty
expect_ok on --json write /db --offset 65536 --length 64K --engine logged --from two
json_holds '.path == "/db"' '.offset == 65536' '.length == 65536' '.engine == "logged"' \
    '.why_not_native == ""'
expect_ok on --json write /db --offset 0 --from - <one # standard input
json_holds '.length == 16384' '.engine == "logged"' '.why_not_native != ""'
cat two | on write /db --offset 256K --length 4K >/dev/null # no more than --length is taken
{ cat one one && zeros 32K && cat two && zeros 128K && slice two 0 4K && zeros 764K; } >db
expect_ok on read /db --offset 0 --length 1M
same_bytes db "$OUT"
expect_ok on read /db --offset 20000 --length 100000
same_bytes <(slice db 20000 100000) "$OUT"
expect_ok on read /db --offset 1040000 --length 1M # to EOF
same_bytes <(slice db 1040000 1M) "$OUT"
expect_ok on read /db --offset 1M --length 1
out_is_empty
expect_ok on read /db --offset 0 --length 0
out_is_empty
expect_ok on read /link --offset 0 --length 4K # a symbolic link inside the volume
same_bytes <(zeros 4K) "$OUT"
expect_ok on read /dir/../plain --offset 0 --length 100K
same_bytes <(pattern plain 10000) "$OUT"

expect_ok on --json write /db --plain --offset 300001 --from two
json_holds '.engine == "plain"' '.length == 65536' '.offset == 300001'
patch db 300001 two
expect_ok on write /plain --plain --offset 9000 --length 2000 --from two
out_has '^/plain: 2000 bytes at 9000, plain$'
{ pattern plain 9000 && slice two 0 2000; } >plain
pattern big 9M >big
expect_ok on write /empty --plain --offset 0 --from big
kernel_roundtrip vol.img db=db plain=plain empty=big

expect_fail 1 'two: has only 65536 of 131072 bytes' on write /db --offset 0 --length 128K --from two
expect_fail 1 'standard input: has only 0 of 4096 bytes' \
    on write /db --offset 0 --length 4K --from - </dev/null
expect_fail 1 'missing: No such file' on write /db --offset 0 --from missing
expect_fail 1 'dir: Is a directory' bash -c 'mkdir -p dir; exec atomic4ctl -d vol.img write /db --offset 0 --from dir'
expect_fail 1 'longer than the limit 4194304' on write /db --offset 0 --length 8M --from big
expect_fail 1 'big: has more than 4194304 bytes, the limit of an atomic write' \
    on write /db --offset 0 --from big
expect_fail 2 'offset is required' on write /db --from one
expect_fail 2 'engine .fast.: want auto, native or logged' on write /db --offset 0 --engine fast
expect_fail 2 'excludes' on write /db --offset 0 --plain --engine logged
expect_fail 2 "'-4096'" on write /db --offset -4096
expect_fail 2 'PATH is required' on write --offset 0
expect_fail 2 'length is required' on read /db --offset 0
for command in "write --offset 0 --from one" "read --offset 0 --length 1" status map check; do
    # shellcheck disable=SC2086
    set -- $command
    expect_fail 1 '/none' on "$1" /none "${@:2}"
    expect_fail 1 '/plain' on "$1" /plain/x "${@:2}"
    expect_fail 1 'loop' on "$1" /loop "${@:2}"
done
expect_fail 1 '/dir: .*directory|/dir: not a regular file' on read /dir --offset 0 --length 1
expect_fail 1 '/dir: not a regular file' on map /dir
if [ -c /dev/full ]; then
    STATUS=0
    on read /db --offset 0 --length 1M >/dev/full 2>"$ERR" || STATUS=$?
    is "$STATUS" 1
    err_has '^atomic4ctl: .*standard output: write failed'
    STATUS=0
    on ls >/dev/full 2>"$ERR" || STATUS=$?
    is "$STATUS" 1
fi
expect_ok on check
json_state=$(on --json check)
is "$(jq -r .clean <<<"$json_state")" true

# --- a sign of life on a terminal, gone before the report ---------------------------------------
mkfifo slow
{ wait_for grep -q '1 s' "$OUT" && cat one; } >slow &
script -fqec 'atomic4ctl -d vol.img write /db --offset 0 --from slow' /dev/null </dev/null >"$OUT"
wait $!
out_has 'writing /db … 1 s'
out_has $'s\r\033\\[K/db: 16384 bytes at 0, logged'
# Not on a terminal: nothing, though it takes as long.
two_seconds_old() {
    local pid
    pid=$(pgrep -nf -- '--from slow$') && [ "$(ps -o etimes= -p "$pid")" -ge 2 ]
}
{ wait_for two_seconds_old && cat one; } >slow &
expect_ok on write /db --offset 0 --from slow
err_is_empty
wait $!

# --- status -----------------------------------------------------------------------------------
expect_ok on --json status /db
json_holds '.path == "/db"' '.size == 1048576' .atomic '.unit == 16384' '.unit_min == 4096' \
    '.unit_max == .unit_max_logged' '.unit_max_logged == 262144' '.unit_max_native == 0' \
    '.segments_max == 1' '.engine == "logged"' '.why_not_native != ""' '.live_records == 0' \
    '.generation != 0' '.units == {"mapped": 64, "holes": 0, "problems": 0}' '.refused == null'
expect_ok on status /db
out_has '^/db$'
out_has '^  atomic +yes$'
out_has '^  unit +16K$'
out_has '^  units +64 mapped, 0 holes, 0 with problems$'
out_has '^  unit_min +4K$'
out_has '^  unit_max +256K \(logged 256K, native none\)$'
out_has '^  segments_max +1$'
out_has '^  engine +logged \(not native: '
expect_ok on --json status /plain
json_holds '.atomic | not' '.unit == null' '.units == null' '.engine == "logged"'
expect_ok on --json status /dir
json_holds '.engine == "none"' '.refused | test("directory")'
expect_ok on status /dir
out_has '^  engine +none: .*directory'
expect_ok on --json status /.atomic4/log
json_holds '.engine == "none"' '.refused | test("redo log")'

# --- map --------------------------------------------------------------------------------------
expect_ok on --json map /db
json_holds '.size == 1048576' '.unit == 16384' '.block_size == 4096' '.runs | length > 0' \
    'all(.runs[]; .aligned and .state == "written" and .device_offset % 16384 == 0)' \
    '[.runs[].length] | add == 1048576'
expect_ok on map /db
out_has '^/db: 1048576 bytes, unit 16K, blocks of 4096$'
out_has ' +0-[0-9]+ +0-[0-9]+ +[0-9]+-[0-9]+  written, aligned$'
out_has '^  \|#{64}\|$'
out_has 'one mark is 1 unit: # aligned, - unwritten, ! misaligned, . hole'
expect_ok on --json map /odd
json_holds '[.runs[] | {state, length}] == [{"state": "written", "length": 102400}, {"state": "unwritten", "length": 28672}]'
expect_ok on --json map /holes
json_holds '.unit == null' '.runs == [{"offset": 0, "length": 1048576, "state": "hole"}]'
expect_ok on map /holes
out_has '^/holes: 1048576 bytes, no unit, blocks of 4096$'
out_has 'hole$'
out_has '^  \|\.{64}\|$'

# --- ls ---------------------------------------------------------------------------------------
expect_ok on ls
out_has '^ +unit +size path$'
out_has '^ +16K +1048576 /db$'
out_has '^ +64K +100000 /odd$'
out_has '^ +4K +4096 /dir/inner$'
out_lacks '/plain|/.atomic4'
expect_ok on --json ls
json_holds 'map(.path) | sort == ["/db", "/dir/inner", "/empty", "/odd"]' \
    'all(.[]; .inode > 11 and .size >= 0 and .unit >= 4096)'
make_image none.img 64M
expect_ok atomic4ctl -d none.img ls
out_is_empty
expect_ok atomic4ctl -d none.img --json ls
json_holds '. == []'

# --- check ------------------------------------------------------------------------------------
expect_ok on check
out_has '^vol.img: 4 atomic files, [0-9]+ units: clean$'
expect_ok on check /db
out_has '^/db: 1 atomic file, 64 units: clean$'
expect_fail 1 '/dir: is a directory: check takes a file' on check /dir
expect_ok on check /plain
out_has '^/plain: no atomic file: clean$'
expect_ok on --json check /plain
json_holds .clean '.files == 0' '.findings == []'
# A finding: the unit says more than the layout holds.
copy_image vol.img bad.img
expect_ok atomic4ctl -d bad.img prealloc /gen --size 4K --unit 4K
debugfs -w -R 'ea_set /dir/inner trusted.atomic4.unit 3000' bad.img >/dev/null 2>&1
debugfs -w -R 'ea_rm /odd trusted.atomic4.unit' bad.img >/dev/null 2>&1
debugfs -w -R 'ea_set /plain trusted.atomic4.unit 16384' bad.img >/dev/null 2>&1
debugfs -w -R 'set_inode_field /gen generation 0' bad.img >/dev/null 2>&1
expect_status 1 atomic4ctl -d bad.img check
err_is_empty
out_has '^problem #2 /odd: the inode has the atomic flag but no unit: '
out_has '^problem #4 /dir/inner: '
out_has '^problem #10 /gen: an atomic inode has generation 0: '
out_has ': has problems: run fsck.atomic4$'
expect_status 1 atomic4ctl -d bad.img --json check
json_holds '.clean | not' \
    '.findings | map(.number) | sort == [2, 3, 4, 10]' \
    'all(.findings[]; (.severity == "problem") == (.number != 3) and (.where | length > 0) and (.meaning | length > 0) and (.detail | length > 0))'
expect_ok atomic4ctl -d bad.img --json check /plain
json_holds .clean '.findings | map(.number) == [3]' '.findings[0].severity == "information"'
expect_ok atomic4ctl -d bad.img check /plain
out_has '^note #3 /plain: '

# --- nothing that only reads changes a byte -----------------------------------------------------
for command in "info vol.img" "-d vol.img status /db" "-d vol.img check" "-d vol.img check /db" \
    "-d vol.img map /db" "-d vol.img ls" "-d vol.img read /db --offset 0 --length 1M"; do
    # shellcheck disable=SC2086
    changes_nothing vol.img atomic4ctl $command
    is "$STATUS" 0
    # shellcheck disable=SC2086
    changes_nothing vol.img atomic4ctl --json $command
    is "$STATUS" 0
done
chmod 444 vol.img
expect_ok as_nobody atomic4ctl -d "$T/vol.img" read /db --offset 0 --length 1M
same_bytes db "$OUT"
chmod 644 vol.img

# --- the program itself ---------------------------------------------------------------------------
expect_ok atomic4ctl --version
out_has '^atomic4ctl [0-9]+\.[0-9]+'
expect_ok atomic4ctl --help
for command in enable disable info recover ls prealloc adopt release status check map write read; do
    out_has "^  $command "
done
for command in enable disable info recover ls prealloc adopt release status check map write read; do
    expect_ok atomic4ctl $command --help
    out_has "Usage: atomic4ctl $command"
done
expect_fail 2 'subcommand' atomic4ctl
expect_fail 2 "^atomic4ctl: 'frobnicate' is no command \(see atomic4ctl --help\)\$" \
    atomic4ctl frobnicate
expect_fail 2 "'frobnicate' is no command" atomic4ctl -d vol.img --json frobnicate /db
expect_fail 2 'd IMAGE' atomic4ctl ls
expect_fail 2 'd IMAGE' atomic4ctl map /db
expect_fail 2 'DEVICE is required' atomic4ctl info
expect_fail 2 'DEVICE is required' atomic4ctl enable
expect_fail 2 'excludes' atomic4ctl recover --force --discard vol.img
# A volume that is named twice could be the wrong one.
for command in enable disable info recover frag; do
    expect_fail 2 "$command names its DEVICE itself" atomic4ctl -d vol.img $command other.img
done
expect_fail 1 'a file has at most 4294967295 blocks' \
    atomic4ctl -d vol.img prealloc /huge --size 18446744073709551615
# Too short an input is found out before anything is written, unless it is a pipe.
head -c 1K /dev/zero >short
changes_nothing vol.img expect_fail 1 'short: has only 1024 of 2048 bytes$' \
    atomic4ctl -d vol.img write /db --plain --offset 5 --length 2K --from short
expect_ok atomic4ctl status -d vol.img /db --json # options of the program after the command too
json_holds '.path == "/db"'
kernel_roundtrip vol.img db=db
