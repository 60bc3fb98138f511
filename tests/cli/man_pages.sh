# The man pages and the programs agree: options, in both directions, the findings' numbers, the keys of
# every JSON report, and the recipes. And the pages are well-formed.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq mandoc strace

man=$ATOMIC4_SOURCE/man
pattern data 64K >data

for page in "$man"/*.[1-9]; do
    capture mandoc -T lint -W warning "$page"
    [ "$STATUS" -eq 0 ] || { show_output && die "mandoc finds faults in $page"; }
    CHECKS=$((CHECKS + 1))
done
for name in atomic4ctl.8 atomic4d.8 mkfs.atomic4.8 fsck.atomic4.8 mount.atomic4.8 umount.atomic4.8 atomic4.5 atomic4.7; do
    [ -e "$man/$name" ] || die "there is no $name"
done

# --- options --------------------------------------------------------------------------------------
# From --help: what the option lines begin with.
help_options() {
    "$@" --help | grep -oE '^  (-[a-zA-Z]|--[a-z-]+)(,--[a-z-]+)?' | grep -oE -- '-[a-zA-Z]\b|--[a-z-]+' |
        sort -u
}
# From a part of a page: the heads of its .TP paragraphs, and what is "passed on" in mkfs.atomic4.
page_options() {
    sed 's/\\-/-/g' | awk '
        /^\.TP/ { head = 1; next }
        head { print; head = 0 }
        /^Passed on/ { passed = 1 }
        /^Block sizes/ { passed = 0 }
        passed && /^\.BR -/ { print $2 }' |
        grep -oE -- '(^|[ ,])(-[a-zA-Z]|--[a-z-]+)\b' | tr -d ' ,' | sort -u
}
same_options() {
    diff -u --label "$1: --help" --label "$1: page" <(echo "$2") <(echo "$3") >&2 ||
        die "$1: help and page differ"
    CHECKS=$((CHECKS + 1))
}
section() { # PAGE REGEX: from that heading to the next
    awk -v head="$2" '/^\.S[HS] / { inside = ($0 ~ head) } inside' "$man/$1"
}
same_options mkfs.atomic4 "$(help_options mkfs.atomic4)" "$(page_options <"$man/mkfs.atomic4.8")"
same_options atomic4ctl "$(help_options atomic4ctl)" "$(section atomic4ctl.8 '^.SH OPTIONS' | page_options)"
# -a has a line with -p in --help.
same_options fsck.atomic4 "$({ echo -- -a && help_options fsck.atomic4; } | sed 's/^-- //' | grep -vx -e --help -e -h | sort -u)" "$(page_options <"$man/fsck.atomic4.8")"
same_options atomic4d "$(help_options atomic4d)" "$(section atomic4d.8 '^.SH OPTIONS' | page_options)"
# The mount helpers say theirs in one line: "[-sfnrvw] [-N NAMESPACE]".
for program in mount.atomic4 umount.atomic4; do
    same_options $program \
        "$($program --help 2>&1 | grep -oE '\[-[a-zA-Z]+' | tr -d '[-' | grep -o . | sed 's/^/-/' | sort)" \
        "$(section $program.8 '^.SH OPTIONS' | page_options)"
done
commands=$(atomic4ctl --help | sed -n '/^Subcommands/,$p' | awk '/^  [a-z]/ { print $1 }')
is "$(wc -w <<<"$commands")" 19
for command in $commands; do
    same_options "atomic4ctl $command" \
        "$(help_options atomic4ctl "$command" | grep -vx -e -h -e --help || true)" \
        "$(section atomic4ctl.8 "^.SS $command( |\$)" | page_options || true)"
    grep -Eq "^\.BI \"atomic4ctl .*[] \"]$command[ \"]" "$man/atomic4ctl.8" ||
        die "$command is not in the synopsis"
done
is "$(sed -n '/^\.SH SUBCOMMANDS/,/^\.SH EXIT/s/^\.SS \([a-z]*\).*/\1/p' "$man/atomic4ctl.8" | sort | xargs)" \
    "$(xargs -n1 <<<"$commands" | sort | xargs)"

# --- findings -------------------------------------------------------------------------------------
findings() {
    sed -n 's/^A4_FINDING(\([0-9]*\), [A-Za-z]*, [A-Za-z]*, [A-Za-z0-9]*, "\([^"]*\)", .*/\1 \2/p' \
        "$ATOMIC4_SOURCE/libatomicfs/check/findings.def"
}
[ "$(findings | wc -l)" -ge 16 ] || die "findings.def can't be read"
while read -r number meaning; do
    for part in 'atomic4ctl.8 ^.SS check' 'fsck.atomic4.8 ^.SH FINDINGS'; do
        section "${part%% *}" "${part#* }" | grep -A1 -x "\.B $number" | tail -1 |
            grep -iF "$meaning" >/dev/null || die "finding $number is not in ${part%% *} as '$meaning'"
        CHECKS=$((CHECKS + 1))
    done
done < <(findings)
is "$(section atomic4ctl.8 '^.SS check' | grep -cE '^\.B [0-9]+$')" "$(findings | wc -l)"

# --- the format -------------------------------------------------------------------------------------
# atomic4(5) has FORMAT.md's byte tables: offset, size and field of each row, in the same order; its
# bits; and the keys and names.
format=$ATOMIC4_SOURCE/libatomicfs/FORMAT.md
rows_of_format() { sed -n 's/^| \(0x[0-9a-f]*\) | \([0-9]* *[a-z]*\) | *\([^|]*\)|.*/\1|\2|\3/p' "$format" | sed 's/ *$//'; }
rows_of_page() { sed -n 's/^\(0x[0-9a-f]*|[0-9]* *[a-z]*|[^|]*\)|.*/\1/p' "$man/atomic4.5"; }
[ "$(rows_of_format | wc -l)" -ge 38 ] || die "FORMAT.md's tables can't be read"
diff -u --label FORMAT.md --label atomic4.5 <(rows_of_format) <(rows_of_page) >&2 ||
    die "atomic4(5) and FORMAT.md differ"
while read -r where value; do
    grep -qx "$where|$value|.*" "$man/atomic4.5" || die "atomic4(5) lacks $where $value"
    CHECKS=$((CHECKS + 1))
done < <(sed -n 's/^| `\([is]_[a-z_]*\)` | \(0x[0-9a-f]*\) .*/\1 \2/p' "$format")
while read -r name; do
    grep -qxF ".B $name" "$man/atomic4.5" || die "atomic4(5) lacks $name"
    CHECKS=$((CHECKS + 1))
done < <(sed -n 's/^| `\(\/\.atomic4[a-z/]*\|trusted\.[a-z0-9.]*\)` .*/\1/p' "$format")
# The words for a log's end are those that info prints.
for word in $(sed -n '/to_text(LogEnd/,/^}/s/.*return "\(.*[a-z]\)";/\1/p' "$ATOMIC4_SOURCE/libatomicfs/redo/log_reader.cc" | tr ' ' _); do
    section atomic4.5 '^.SS Its end' | grep -qx "\.B ${word/_/ }" || die "atomic4(5) lacks ${word/_/ }"
    CHECKS=$((CHECKS + 1))
done
# The limits of atomic4(7) name what the library refuses by name.
for word in $(sed -n 's/^    {EXT4_FEATURE_[A-Z_]*, "\(bigalloc\|quota\|inline_data\|casefold\|mmp\)", .*/\1/p' \
    "$ATOMIC4_SOURCE/libatomicfs/ext4/features.cc"); do
    section atomic4.7 '^.SS Limits' | grep -wF "$word" >/dev/null || die "atomic4(7) lacks $word"
    CHECKS=$((CHECKS + 1))
done

# --- JSON keys --------------------------------------------------------------------------------------
# Of each subcommand, over several runs that bring out all its keys.
documented_keys() { # the words in bold of the section's JSON part
    section atomic4ctl.8 "^.SS $1( |\$)" | sed -n '/^JSON[:,]/,$p' | sed -n 's/^\.BR\{0,1\} //p' |
        sed 's/ [;.,)].*//; s/ ;$//' | sort -u
}
declare -A seen
keys_of() { # SUBCOMMAND ARGUMENT…
    local command=$1
    shift
    capture atomic4ctl --json "$@"
    [ "$STATUS" -le 1 ] && [ -s "$OUT" ] || { show_output && die "no report: $*"; }
    seen[$command]+=$(jq -r '.. | objects | keys[]' "$OUT")$'\n'
}
make_ext4 vol.img 96M
keys_of info info vol.img
keys_of frag frag vol.img
keys_of enable enable vol.img
keys_of info info vol.img
keys_of prealloc -d vol.img prealloc /db --size 100000
keys_of write -d vol.img write /db --offset 0 --from data
keys_of write -d vol.img write /db --plain --offset 0 --from data
keys_of ls -d vol.img ls
keys_of status -d vol.img status /db
keys_of status -d vol.img status /
keys_of status -d vol.img status /.atomic4/log
keys_of map -d vol.img map /db
keys_of map -d vol.img map --unit 64K /db
expect_ok atomic4ctl -d vol.img prealloc /holes --size 0
expect_ok atomic4ctl -d vol.img write /holes --offset 128K --from data
keys_of map -d vol.img map /holes
keys_of check -d vol.img check
expect_ok atomic4ctl -d vol.img release /db
keys_of adopt -d vol.img adopt /db
keys_of release -d vol.img release /db
expect_ok atomic4ctl -d vol.img adopt /db
keys_of recover recover vol.img
copy_image vol.img bad.img
debugfs -w -R 'ea_rm /db trusted.atomic4.unit' bad.img >/dev/null 2>&1
keys_of check -d bad.img check
debugfs -w -R 'ea_rm / trusted.atomic4.volume' bad.img >/dev/null 2>&1
keys_of info info bad.img
bitmap=$(dumpe2fs bad.img 2>/dev/null | sed -n 's/.*Block bitmap at \([0-9]*\).*/\1/p' | sed 1q)
patch bad.img $((bitmap * 4096 + 9)) <(printf '\x55')
keys_of frag frag bad.img
# On standard error, since the tool has the output.
capture atomic4ctl --json guard vol.img -- true
seen[guard]=$(jq -r '.. | objects | keys[]' "$ERR")
keys_of disable disable --force vol.img
# Through a daemon.
truncate -s 96M vol.img && expect_ok mkfs.atomic4 -q -F -b 4096 vol.img
expect_ok atomic4ctl -d vol.img prealloc /db --size 100000
expect_ok atomic4d vol.img --socket "$T/sock" --pid-file pid
UNDO+=("kill $(cat pid)")
keys_of write --socket "$T/sock" write /db --offset 0 --from data
keys_of status --socket "$T/sock" status /db
keys_of stats --socket "$T/sock" stats
# Their keys are numbers, and names of errors.
is "$(json_value '.groups.sizes | keys[]')" 1
seen[stats]=$(grep -vx 1 <<<"${seen[stats]}")
keys_of ping --socket "$T/sock" ping -c 1
keys_of freeze --socket "$T/sock" freeze
keys_of thaw --socket "$T/sock" thaw
for command in $commands; do
    [ "$command" = read ] && continue
    diff -u --label "atomic4ctl --json $command" --label "page" \
        <(sort -u <<<"${seen[$command]}" | grep .) <(documented_keys "$command") >&2 ||
        die "$command: JSON and page differ"
    CHECKS=$((CHECKS + 1))
done

# --- the examples work ------------------------------------------------------------------------------
examples() {
    section "$1" '^.SH EXAMPLES' | sed -n '/^\.nf/,/^\.fi/p' | grep -v '^\.' |
        sed 's/\\-/-/g; s|/dev/sdb1|disk.img|g; s/--size 10G/--size 100M/; s/ 20G$/ 600M/'
}
truncate -s 600M disk.img
expect_ok bash -euc "$(examples mkfs.atomic4.8)"
expect_ok atomic4ctl --json info db.img
json_holds '.unit == 65536' '.log.size == 67108864'
rm disk.img
make_ext4 disk.img 600M
expect_ok bash -euo pipefail -c "$(examples atomic4ctl.8)"
kernel_roundtrip disk.img
