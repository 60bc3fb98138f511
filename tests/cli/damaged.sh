# Damaged images, and what is no image at all, as a user meets them: a clear message, exit status 1,
# nothing changed, and an end in time. (Many more of them in the process: tests/damage.)
. "$(dirname "$0")/lib.sh"
need_program timeout python3

pattern db 16K >db
commands=("enable IMG" "disable --force IMG" "recover IMG" "recover --force IMG" "-d IMG ls"
    "recover --discard IMG" "-d IMG prealloc /x --size 64K" "-d IMG write /db --offset 0 --from db"
    "-d IMG write /db --offset 0 --plain --from db" "-d IMG read /db --offset 0 --length 4K"
    "-d IMG status /db" "-d IMG map /db" "-d IMG check" "-d IMG check /db" "info IMG")

# refused IMAGE REGEX COMMAND…: each of these commands.
refused() {
    local image=$1 regex=$2 command
    shift 2
    for command; do
        # shellcheck disable=SC2086
        expect_fail 1 "$regex" timeout 60 atomic4ctl ${command//IMG/$image}
    done
}
all_refused() {
    refused "$@" "${commands[@]}"
}

# --- no image -----------------------------------------------------------------------------------------
mkdir dir
mkfifo fifo
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
ln -s loop2 loop1
ln -s loop1 loop2
ln -s nowhere dangling
: >empty
head -c 511 /dev/zero >short
all_refused dir 'dir is a directory: a block device or an image file is needed'
all_refused fifo 'fifo is a FIFO: a block device or an image file is needed'
all_refused socket 'socket is a socket: a block device or an image file is needed'
all_refused /dev/null '/dev/null is a character device: a block device or an image file is needed'
all_refused loop1 'loop1: Too many levels of symbolic links'
all_refused dangling 'dangling: No such file or directory'
all_refused nothing 'nothing: No such file or directory'
all_refused db/x 'db/x: Not a directory'
all_refused empty 'empty: .*(truncated|not an ext4)'
all_refused short 'short: .*(truncated|not an ext4)'
all_refused db 'db: .*(truncated|not an ext4)'
[ ! -e nothing ] && [ ! -e nowhere ] || die "a file was made"
[ ! -s empty ] || die "empty has become longer"
if [ "$(id -u)" -eq 0 ]; then
    mkdir locked
    chmod 700 locked
    cp db locked/vol.img
    for command in "${commands[@]}"; do
        # shellcheck disable=SC2086
        expect_fail 1 'locked/vol.img: Permission denied' \
            as_nobody timeout 60 atomic4ctl ${command//IMG/locked/vol.img}
    done
fi
for path in dir fifo socket /dev/null; do
    expect_fail 1 "^mkfs.atomic4: .*$path" timeout 60 mkfs.atomic4 -q "$path" 16M
done

# --- damaged images -----------------------------------------------------------------------------------
# A live record in the log: a write whose placement was cut short.
make_image base.img 16M -b 1024
file_in_two_runs base.img /db
killed_half_way base.img /db db

# at PLACE: the byte of base.img where libext2fs says it is.
block_at() {
    debugfs -R "$1" base.clean 2>/dev/null | grep -o '[0-9]\+' | head -1
}
copy_image base.img base.clean
expect_ok atomic4ctl recover base.clean
clear_gate base.clean
inode_at() { # "located at block B, offset 0xO"
    local text
    text=$(debugfs -R "imap $1" base.clean 2>/dev/null | tail -1)
    [[ $text =~ block\ ([0-9]+),\ offset\ 0x([0-9a-f]+) ]] || die "imap $1: $text"
    echo $((BASH_REMATCH[1] * 1024 + 16#${BASH_REMATCH[2]}))
}
flip() { # FILE BYTE BIT
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    patch "$1" "$2" <(printf "\\x$(printf %x $((byte ^ (1 << $3))))")
}

declare -A places=(
    [superblock]=$((1024 + 0x18))
    [superblock-label]=$((1024 + 0x78))
    [descriptor]=$((2048 + 8))
    [log-inode]=$(($(inode_at /.atomic4/log) + 0x28))
    [directory-inode]=$(($(inode_at /.atomic4) + 4))
    [root-inode]=$(($(inode_at /) + 0x28))
    [db-inode]=$(($(inode_at /db) + 0x3c))
    [root-directory]=$(($(block_at 'blocks /') * 1024 + 4))
    [log-superblock]=$(($(block_at 'blocks /.atomic4/log') * 1024 + 0x30))
    [log-record]=$((($(block_at 'blocks /.atomic4/log') + 16) * 1024 + 0x40))
)
# Whatever a command says: it ends with 0 or 1; with 1 it says why, for what looks it changes nothing,
# and what it has changed e2fsck finds no worse than before.
looking() {
    case $1 in *read*|*status*|*map*|*check*|*info*|*" ls") return 0 ;; *) return 1 ;; esac
}
complaints() { # IMAGE >list: without numbers
    local copy=$T/.complaints
    copy_image "$1" "$copy"
    if has_feature "$copy" FEATURE_I28; then clear_needs_replay "$copy"; fi
    debugfs -w -n -R 'feature -FEATURE_C28' "$copy" >/dev/null 2>&1 || true
    e2fsck -fn "$copy" 2>&1 | sed -n '/^Pass 1/,$p' | grep -Ev '^(Pass|$)|files \(|WARNING' |
        sed -E 's/(differences:).*/\1/; s/[0-9]+/N/g; s/[A-Z][^.]*\? no$//; /^[ N]*$/d' | sort -u || true
}
for place in "${!places[@]}"; do
    for bit in 1 6; do
        copy_image base.img vol.img
        flip vol.img "${places[$place]}" $bit
        copy_image vol.img damaged.img
        for command in "${commands[@]}"; do
            copy_image damaged.img vol.img
            # shellcheck disable=SC2086
            capture timeout 60 atomic4ctl ${command//IMG/vol.img}
            [ "$STATUS" -le 1 ] || { show_output && die "$place, bit $bit: exit status $STATUS: $command"; }
            if cmp -s vol.img damaged.img; then continue; fi
            ! looking "$command" || die "$place, bit $bit: looking changed the image: $command"
            # A refusal may come after a replay or repair, which is said.
            [ "$STATUS" -eq 0 ] || err_has 'replayed|repaired|recover' ||
                die "$place, bit $bit: refused, but changed: $command"
            complaints damaged.img >"$T/.worse.before"
            complaints vol.img >"$T/.worse.after"
            [ -z "$(comm -13 "$T/.worse.before" "$T/.worse.after")" ] ||
                die "$place, bit $bit: $command: $(comm -13 "$T/.worse.before" "$T/.worse.after")"
        done
        CHECKS=$((CHECKS + 1))
        # mkfs sees what it is, however damaged.
        if [ "$place" != superblock ]; then
            copy_image damaged.img vol.img
            capture timeout 60 mkfs.atomic4 -q vol.img
            is "$STATUS" 1
            cmp -s vol.img damaged.img || die "mkfs.atomic4 changed a volume that it refuses"
        fi
    done
done

# Cut.
for length in 512 1024 1500 2048 4096 100000 8M; do
    copy_image base.img vol.img
    truncate -s $length vol.img
    remember vol.img
    all_refused vol.img '^atomic4ctl: vol.img: '
    unchanged vol.img
done
