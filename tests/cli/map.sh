# A file's map: its text, its report and its picture say the same, of atomic files and of those that
# other tools have made.
. "$(dirname "$0")/lib.sh"
need_program jq xmllint

# A file that any ext4 tool has made, in gaps of 1, 2 … 6 blocks. No block of zeros: debugfs leaves
# those out.
make_ext4 vol.img 40M
for blocks in 1 2 3 4 5 6 40; do pattern "$blocks" $((blocks * 4))K >d$blocks; done
for i in $(seq 60); do
    echo "write d$((i % 6 + 1)) gap$i"
    echo "write d1 wall$i"
done >commands
for i in $(seq 60); do echo "rm gap$i"; done >>commands
echo "write d40 by_chance" >>commands
debugfs -w -f commands vol.img >/dev/null 2>&1
debugfs -R 'stat /by_chance' vol.img 2>/dev/null | sed -n '/^EXTENTS/,$p' >extents
expect_ok atomic4ctl enable vol.img -l 8M

# Seen in its own blocks it is aligned as everything is; in units of 16K, by chance.
expect_ok atomic4ctl -d vol.img --json map /by_chance
json_holds '.unit == null' '.units == {aligned: 40, misaligned: 0, in_pieces: 0, holes: 0}'
runs=$(json_value '.runs | length')
[ "$runs" -gt 3 ] || die "the example is not fragmented"
# The same runs as debugfs sees: "(0-3):1234-1237, …".
is "$(json_value '.runs[] | "\(.offset / 4096) \(.device_offset / 4096) \(.length / 4096)"')" \
    "$(grep -oE '\([0-9-]+\):[0-9-]+' extents | tr '():-' '    ' | awk '
        NF == 2 { print $1, $2, 1 }
        NF == 4 { print $1, $3, $4 - $3 + 1 }')"
# Units counted by hand.
json_value '.runs[] | "\(.offset / 4096) \(.device_offset / 4096) \(.length / 4096)"' | awk '
    { for (i = 0; i < $3; ++i) at[$1 + i] = $2 + i }
    END {
        for (u = 0; u < 10; ++u) {
            whole = 1
            for (i = 1; i < 4; ++i) if (at[u * 4 + i] != at[u * 4] + i) whole = 0
            if (!whole) ++pieces; else if (at[u * 4] % 4) ++misaligned; else ++aligned
        }
        print aligned + 0, misaligned + 0, pieces + 0
    }' >by_hand
expect_ok atomic4ctl -d vol.img --json map /by_chance --unit 16K --svg map.svg
json_holds '.unit == 16384' '.units.holes == 0'
is "$(json_value '.units | "\(.aligned) \(.misaligned) \(.in_pieces)"')" "$(cat by_hand)"
read -r aligned misaligned pieces <by_hand
[ "$misaligned" -gt 0 ] && [ "$pieces" -gt 0 ] || die "the example is too good: $(cat by_hand)"
expect_ok xmllint --noout map.svg
xmllint --xpath 'string(/*/*[local-name()="title"])' map.svg | grep -F "Map of /by_chance: $aligned of 10 units aligned, $misaligned misaligned, $pieces in pieces" >/dev/null
grep -qF '>device offset<' map.svg
grep -qF 'each square is one unit of 16K' map.svg
expect_ok atomic4ctl -d vol.img map -u 16K /by_chance
out_has '^/by_chance: 163840 bytes, seen in units of 16K, blocks of 4096$'
out_has 'written, misaligned by [123] blocks?$'
out_has '^  \|[#!%]{10}\|$'
out_has ", % in pieces$"
is "$(sed -n 's/^  |\(.*\)|$/\1/p' "$OUT" | tr -cd '!' | wc -c)" "$misaligned"
is "$(sed -n 's/^  |\(.*\)|$/\1/p' "$OUT" | tr -cd '%' | wc -c)" "$pieces"

# An atomic file; its name in the picture is escaped.
expect_ok atomic4ctl -d vol.img prealloc '/a<&">' --size 160K --unit 16K
expect_ok atomic4ctl -d vol.img map '/a<&">' --svg map.svg
out_has '^  all 10 units aligned$'
out_has '^  \|##########\|$'
expect_ok xmllint --noout map.svg
is "$(xmllint --xpath 'string(/*/*[local-name()="title"])' map.svg)" 'Map of /a<&">: all 10 units aligned'
# Ten thousand units, some of them holes; and none at all.
expect_ok atomic4ctl -d vol.img prealloc /large --size 0 --unit 4K
expect_ok atomic4ctl -d vol.img write /large --offset 40M --from d1
expect_ok atomic4ctl -d vol.img --json map /large --svg map.svg
json_holds '.units.aligned == 1' '.units.holes == 10240'
grep -qF 'each square is 16 units of 4K, together 64K; it shows the worst' map.svg
expect_ok xmllint --noout map.svg
expect_ok atomic4ctl -d vol.img prealloc /empty --size 0
expect_ok atomic4ctl -d vol.img map /empty --svg map.svg
expect_ok xmllint --noout map.svg

# Blocks that fallocate put beyond EOF: they are adopted and checked, so they are shown.
truncate -s 64M beyond.img
mke2fs -q -t ext4 -b 4096 beyond.img
head -c 5000 /dev/zero | tr '\0' y >short
debugfs -w -R 'write short short' beyond.img >/dev/null 2>&1
debugfs -w -R 'fallocate short 2 9' beyond.img >/dev/null 2>&1
expect_ok atomic4ctl enable -l 8M beyond.img
expect_ok atomic4ctl -d beyond.img --json map /short --unit 16K
json_holds '.units.aligned + .units.misaligned + .units.in_pieces == 3'
expect_ok atomic4ctl -d beyond.img map /short --unit 16K
out_has ', beyond EOF$'

# Whoever may create files chooses their names: none of them reaches the terminal as it is.
expect_ok atomic4ctl -d vol.img prealloc $'/a\n\033[31mred' --size 16K
out_has '^/a.x0a.x1b\[31mred: 16K in '
expect_ok atomic4ctl -d vol.img ls
out_has ' /a.x0a.x1b\[31mred$'
expect_fail 1 '^atomic4ctl: /none.x1b\[31m: ' atomic4ctl -d vol.img map $'/none\033[31m'
expect_ok atomic4ctl -d vol.img release $'/a\n\033[31mred'
out_has '^/a.x0a.x1b\[31mred: released: '
# Nor does a report fail for them, after something was changed.
expect_ok atomic4ctl -d vol.img --json prealloc $'/bad\xff\xfe' --size 16K
json_holds '.unit == 16384'
expect_ok atomic4ctl -d vol.img --json ls
json_holds 'any(.[]; .path | startswith("/bad"))'
expect_ok atomic4ctl -d vol.img --json release $'/bad\xff\xfe'

# The picture's file: as long a name as any, the file behind a link, with the permissions it has.
expect_ok atomic4ctl -d vol.img map /empty --svg "$(printf 'n%.0s' {1..251}).svg"
ln -s map.svg link.svg
chmod 600 map.svg
expect_ok atomic4ctl -d vol.img map /empty --svg link.svg
[ -L link.svg ]
is "$(stat -c %a map.svg)" 600
expect_ok xmllint --noout map.svg
ln -s nowhere dangling.svg
expect_fail 1 'dangling.svg: No such file' atomic4ctl -d vol.img map /empty --svg dangling.svg
expect_fail 2 'empty file name' atomic4ctl -d vol.img map /empty --svg ''

# Nothing of it changes the image, and what is no picture is left alone.
changes_nothing vol.img atomic4ctl -d vol.img map /by_chance --svg map.svg
is "$STATUS" 0
changes_nothing vol.img expect_fail 1 'exists and is no SVG picture' \
    atomic4ctl -d vol.img map /by_chance --svg vol.img
for unit in 2K 8M 12K; do
    expect_fail 1 'unit' atomic4ctl -d vol.img map /by_chance --unit "$unit"
done
expect_fail 2 'size' atomic4ctl -d vol.img map /by_chance --unit -1
