# demo.sh, which people try first, in its short form: it checks itself, and stops at the first thing
# that isn't as it says.
. "$(dirname "$0")/lib.sh"
need_root
need_program strace debugfs

expect_ok "$ATOMIC4_SOURCE/demo.sh" --short "$ATOMIC4_BIN"
out_has '^every byte of /db compared: '
out_has '^writer: the daemon is gone; it had acknowledged [1-9][0-9]* writes'
out_has '^# Done\.'
expect_status 2 "$ATOMIC4_SOURCE/demo.sh" --long
err_has '^usage: '
