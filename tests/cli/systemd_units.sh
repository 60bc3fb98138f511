# The units are understood as they are meant: systemd-analyze has nothing to say about them.
. "$(dirname "$0")/lib.sh"
need_program systemd-analyze

mkdir units
# Installed or not: a program that exists.
sed "s|^ExecStart=[^ ]*/atomic4d |ExecStart=/bin/true |" \
    "$ATOMIC4_SOURCE/packaging/systemd/atomic4d@.service.in" >units/atomic4d@.service
cp "$ATOMIC4_SOURCE/packaging/systemd/atomic4d@.socket" units/
grep -q '^ExecStart=/bin/true --foreground ' units/atomic4d@.service || die "no ExecStart"

# A mount point with a space and a dash in its name.
instance=$(systemd-escape --path '/srv/my data-base')
cat >"units/$instance.mount" <<'END'
[Mount]
What=/dev/null
Where=/srv/my data-base
END
cp units/atomic4d@.service "units/atomic4d@$instance.service"
cp units/atomic4d@.socket "units/atomic4d@$instance.socket"
for unit in service socket; do
    capture env SYSTEMD_UNIT_PATH="$PWD/units:" \
        systemd-analyze verify --man=no "units/atomic4d@$instance.$unit"
    grep "atomic4d@" "$OUT" "$ERR" && die "atomic4d@.$unit has faults"
    [ "$STATUS" -eq 0 ] || { show_output && die "atomic4d@.$unit isn't accepted"; }
    CHECKS=$((CHECKS + 1))
done
