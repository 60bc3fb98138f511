# How free space lies: the figures beside e2freefrag's, the picture, and whom it leaves alone.
. "$(dirname "$0")/lib.sh"
need_program jq e2freefrag xmllint

# Plain or atomic4, whatever the block size: the same pieces as e2freefrag's lines.
same_as_e2freefrag() { # IMAGE
    copy_image "$1" stock.img
    if has_feature stock.img FEATURE_C28; then clear_gate stock.img; fi
    e2freefrag stock.img >theirs
    rm stock.img
    expect_ok atomic4ctl --json frag "$1"
    is "$(json_value .free_blocks)" "$(sed -n 's/^Free blocks: \([0-9]*\).*/\1/p' theirs)"
    is "$(json_value '.pieces[] | select(.count > 0) | "\(.count) \(.blocks)"')" \
        "$(sed -n 's/^ *[0-9]*[KMG]\.\.\. *[0-9]*[KMG]- *: *\([0-9]*\) *\([0-9]*\) .*/\1 \2/p' theirs)"
    json_holds '.damaged == []' '.units[0].unit == .block_size' '.units[-1].unit == 4194304' \
        '.units[0].runs == .free_blocks' '.units[0].usable_percent == 100' \
        '.longest.length >= .largest_aligned.length' \
        '.largest_aligned | .device_offset % .length == 0'
}
for block in 1024 2048 4096; do
    make_ext4 plain.img 40M -b "$block"
    same_as_e2freefrag plain.img
    make_image ours.img 40M -b "$block"
    expect_ok atomic4ctl -d ours.img prealloc /a --size 1M --unit 64K
    expect_ok atomic4ctl -d ours.img prealloc /b --size 20000
    same_as_e2freefrag ours.img
done

# Text, read-only, and not a byte changed.
chmod 444 ours.img
changes_nothing ours.img atomic4ctl frag ours.img
is "$STATUS" 0
err_is_empty
out_has '^ours\.img: [0-9,]+ of 10,240 blocks of 4K free \([0-9.]+ %\), in [0-9]+ pieces?$'
out_has '^ +4K +[0-9,]+ +100\.0 %  #{32}$'
out_has '^ +4M +[0-9,]+ +[0-9.]+ %'
out_has '^ +4K - 8K '

# The picture is well-formed whatever the name, and agrees with the report.
mv ours.img 'a<b>&"c'
expect_ok atomic4ctl --json frag --svg picture.svg 'a<b>&"c'
runs="100.0 %: $(json_value .free_blocks | sed -E ':a; s/([0-9])([0-9]{3})($|,)/\1,\2\3/; ta') aligned runs"
grep -qF "$runs" picture.svg || die "the picture lacks '$runs'"
expect_ok xmllint --noout picture.svg
is "$(xmllint --xpath 'string(/*/*[local-name()="title"])' picture.svg)" 'Free space of a<b>&"c'
# Replaced if it is a picture or empty; anything else is not ours.
expect_ok atomic4ctl frag --svg picture.svg 'a<b>&"c'
: >empty && expect_ok atomic4ctl frag --svg empty 'a<b>&"c'
chmod 644 'a<b>&"c'
changes_nothing 'a<b>&"c' expect_fail 1 'exists and is no SVG picture' atomic4ctl frag --svg 'a<b>&"c' 'a<b>&"c'
expect_fail 1 'exists and is no SVG picture' atomic4ctl frag --svg /dev/null 'a<b>&"c'
expect_fail 1 'exists and is no SVG picture' atomic4ctl frag --svg . 'a<b>&"c'
expect_fail 1 'No such file' atomic4ctl frag --svg none/such.svg 'a<b>&"c'

# A damaged bitmap: its group is left out, the others count; exit status 1.
make_ext4 bad.img 300M
expect_ok atomic4ctl --json frag bad.img
sound=$(json_value .free_blocks)
bitmap=$(dumpe2fs bad.img 2>/dev/null | sed -n 's/.*Block bitmap at \([0-9]*\).*/\1/p' | sed 1q)
patch bad.img $((bitmap * 4096 + 9)) <(printf '\x55')
capture atomic4ctl --json frag bad.img
is "$STATUS" 1
json_holds '.damaged | length == 1' '.damaged[0].group == 0' '.free_blocks > 0'
[ "$(json_value .free_blocks)" -lt "$sound" ]
capture atomic4ctl frag bad.img
out_has '1 group left out: damaged'

# Whatever state the volume is in; but what the journal holds is not in the figures.
make_ext4 crashed.img 40M
expect_ok atomic4ctl --json frag crashed.img
sound=$(json_value .)
err_is_empty
debugfs -w -R 'feature needs_recovery' crashed.img >/dev/null 2>&1
changes_nothing crashed.img expect_ok atomic4ctl --json frag crashed.img
is "$(json_value .)" "$sound"
err_has '^atomic4ctl: warning: crashed\.img: its journal needs recovery: the figures are from before$'

# No volume at all; and a command line that is off.
zeros 1M >zeros.img
expect_fail 1 'not an ext4 volume' atomic4ctl frag zeros.img
expect_fail 1 'No such file' atomic4ctl frag none.img
expect_fail 2 'DEVICE is required' atomic4ctl frag
expect_fail 2 'not through a --socket' atomic4ctl --socket s frag bad.img

# 15 TiB in little memory: uninitialised groups are not read.
truncate -s 15T huge.img
mke2fs -q -t ext4 -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard huge.img
(ulimit -v 400000 && exec atomic4ctl --json frag huge.img >huge.json)
jq -e '.free_blocks > 3.9e9 and .units[-1].usable_percent > 99' huge.json >/dev/null
