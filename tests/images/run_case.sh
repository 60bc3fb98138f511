#!/bin/bash
# run_case.sh NAME: what two runs of fsck.atomic4 -fy make of the damaged volume NAME/image.xz, and say
# about it, is what is expected; before that, -fn sees that something is wrong and changes no byte.
: "${ATOMIC4_BIN:?the directory of the programs}"
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_what_fsck_needs

NAME=${1:?usage: run_case.sh NAME}
CASE=$IMAGES/$NAME
xz -dc "$CASE/image.xz" >vol.img

want=$(sed -n 's/^Exit status is //p' "$CASE/expect.1")
before=$(sha256sum <vol.img)
status=0
fsck.atomic4 -fn vol.img >"$T/look" 2>&1 || status=$?
is "$(sha256sum <vol.img)" "$before"
if [ $((want & 3)) -ne 0 ] && [ $((status & 4)) -eq 0 ]; then
    cat "$T/look" >&2
    die "$NAME: -fn finds nothing to correct: exit status $status"
elif [ "$want" -eq 0 ] && [ "$status" -ne 0 ]; then
    cat "$T/look" >&2
    die "$NAME: -fn: exit status $status where nothing is to be corrected"
fi

mkdir is
two_runs is
differs=false
for file in expect.1 expect.2 expect.files; do
    diff -u --label "$NAME/$file" --label "$NAME/$file, now" "$CASE/$file" "is/$file" >&2 ||
        differs=true
    CHECKS=$((CHECKS + 1))
done
! $differs || die "$NAME: not what is expected"
