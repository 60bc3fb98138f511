# The reserved blocks of an owned image: root's share is for root, and whoever may open the image
# file may otherwise use it.
. "$(dirname "$0")/lib.sh"
need_root
need_program jq

make_image vol.img 64M -m 20 -l 1M
chmod 666 vol.img
chmod 777 "$T"
pattern db 16K >db
expect_ok as_nobody atomic4ctl -d "$T/vol.img" prealloc /mine --size 1M
expect_ok as_nobody atomic4ctl -d "$T/vol.img" write /mine --offset 0 --from db
expect_ok atomic4ctl --json info vol.img
free=$(json_value .free_blocks)
reserved=$((16384 * 20 / 100))
[ "$free" -gt $((reserved + 1000)) ] || die "only $free free blocks"

# All but 100 of the unreserved ones, then too much, then, as root, into the reserve.
expect_ok as_nobody atomic4ctl -d "$T/vol.img" prealloc /most \
    --size $(((free - reserved - 100) * 4))K --unit 4K
changes_nothing vol.img as_nobody atomic4ctl -d "$T/vol.img" prealloc /toomuch --size 1M --unit 4K
is "$STATUS" 1
is "$(wc -l <"$ERR")" 1
err_has '^atomic4ctl: /toomuch: 256 blocks wanted, [0-9]+ free, of which 3276 are reserved for root$'
changes_nothing vol.img as_nobody atomic4ctl -d "$T/vol.img" write /mine --offset 2M --length 1M \
    --from /dev/zero
is "$STATUS" 1
expect_ok atomic4ctl -d vol.img prealloc /roots --size 1M --unit 4K
# With less free than is reserved, all of that is.
expect_fail 1 '/small: 1 blocks? wanted, ([0-9]+) free, of which \1 are reserved for root$' \
    as_nobody atomic4ctl -d "$T/vol.img" prealloc /small --size 4K --unit 4K
expect_fail 1 '/none: 5120 blocks wanted, [0-9]+ free' \
    atomic4ctl -d vol.img prealloc /none --size 20M --unit 4K
{ cat db && zeros $((1048576 - 16384)); } >mine
kernel_roundtrip vol.img mine=mine
