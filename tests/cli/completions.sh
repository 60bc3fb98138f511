# Completions and programs agree, in both directions: every option and subcommand of --help is
# completed, and nothing else. bash's are asked as bash asks them; zsh's functions run with an
# _arguments of our own that tells what it was given.
. "$(dirname "$0")/lib.sh"

completions=$ATOMIC4_SOURCE/packaging/completions
programs='atomic4ctl atomic4d mkfs.atomic4 fsck.atomic4 mount.atomic4 umount.atomic4'

# What the program itself says.
help_options() {
    # -p and -a of fsck.atomic4 are one.
    "$@" --help | sed 's/^  -p,-a /  -p\n  -a /' | grep -oE '^  (-[a-zA-Z]|--[a-z-]+)(,--[a-z-]+)?' | grep -oE -- '-[a-zA-Z]\b|--[a-z-]+'
}
usage_options() { # of mount helpers: "[-sfnrvw] [-N NAMESPACE]"
    "$1" --help 2>&1 | grep -oE '\[-[a-zA-Z]+' | tr -d '[-' | grep -o . | sed 's/^/-/'
}
subcommands=$(atomic4ctl --help | sed -n '/^Subcommands/,$p' | awk '/^  [a-z]/ { print $1 }')
options_of() { # PROGRAM [SUBCOMMAND]: with those that may stand before the subcommand
    case $1 in
        *mount.atomic4) usage_options "$1" ;;
        *) { help_options "$1" && { [ $# -eq 1 ] || help_options "$@"; }; } ;;
    esac | sort -u
}
# In a program's help: "--engine TEXT:{auto,native,logged}".
values_of() { # PROGRAM OPTION
    "$1" --help | sed -n "s/^  $2 [A-Z]*:{\(.*\)}.*/\1/p" | tr , '\n' | sort
}
same() { # WHAT HELP COMPLETED
    diff -u --label "$1: --help" --label "$1: completed" <(echo "$2") <(echo "$3") >&2 ||
        die "$1: help and completion differ"
    CHECKS=$((CHECKS + 1))
}

# --- bash -----------------------------------------------------------------------------------------
for program in $programs; do
    # shellcheck disable=SC1090
    . "$completions/bash/$program"
done
is "$(ls "$completions/bash" | sort | xargs)" "$(xargs -n1 <<<"$programs" | sort | xargs)"
# Only within a completion: that names are those of files.
compopt() { :; }
# What bash would offer with the cursor at the end of these words, a line each.
completed() {
    local function
    trap - ERR # a compgen without matches says so by its status
    set +e
    function=$(complete -p "$1" | sed -n 's/^complete -F \([a-z0-9_]*\) .*/\1/p')
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    COMPREPLY=()
    "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\n' "${COMPREPLY[@]}" | sort -u
}
for program in $programs; do
    same "bash: $program" "$(options_of "$program")" "$(completed "$program" -)"
done
same "bash: atomic4ctl's commands" "$(sort <<<"$subcommands")" "$(completed atomic4ctl '')"
same "bash: commands after options" "$(sort <<<"$subcommands")" \
    "$(completed atomic4ctl --json -d map '')"
for command in $subcommands; do
    same "bash: atomic4ctl $command" "$(options_of atomic4ctl "$command")" \
        "$(completed atomic4ctl -d frag --json "$command" x -)"
done
for option in --engine --backend --log-level; do
    same "bash: atomic4d $option" "$(values_of atomic4d "$option")" "$(completed atomic4d "$option" '')"
    same "bash: atomic4d $option=" "$(values_of atomic4d "$option")" \
        "$(completed atomic4d "$option" =)"
done
is "$(completed atomic4ctl write --engine n)" native
is "$(completed atomic4ctl write --engine = n)" native
is "$(completed atomic4ctl fr | xargs)" 'frag freeze'
is "$(completed atomic4ctl --js)" --json
is "$(completed mkfs.atomic4 -b 2)" 2048
is "$(completed atomic4ctl map --unit 1 | xargs)" '128K 16K 1M'
# Every unit that is offered is one.
expect_ok mkfs.atomic4 -q -b 4096 vol.img 64M
for unit in $(completed atomic4ctl prealloc --unit ''); do
    expect_ok atomic4ctl -d vol.img prealloc "/$unit" --size 0 --unit "$unit"
done
# Names of files, with what they hold, where a file of this system is wanted; not inside a volume.
mkdir 'a dir' && : >'a dir/an image'
is "$(completed atomic4ctl info 'a dir/')" 'a dir/an image'
is "$(completed atomic4ctl frag --svg a)" 'a dir'
is "$(completed atomic4ctl status a)" 'a dir'
is "$(completed atomic4ctl -d vol.img status a)" ''
is "$(completed atomic4ctl status -d vol.img a)" ''
for program in atomic4d mkfs.atomic4 mount.atomic4 umount.atomic4; do
    is "$(completed "$program" vo)" vol.img
done
is "$(completed atomic4ctl write /db --offset '')" ''

# --- zsh ------------------------------------------------------------------------------------------
need_program zsh
expect_ok zsh -n "$completions/zsh/_atomic4"
is "$(sed -n '1s/^#compdef //p' "$completions/zsh/_atomic4")" "$programs"
cat >ask.zsh <<'END'
_arguments() { print -rl -- "$@" }
_describe() { print -rl -- "${(@P)4}" }
completions=$1
shift
service=$1
words=("$@")
CURRENT=$#words
source $completions/zsh/_atomic4
END
asked() { zsh -f ask.zsh "$completions" "$@"; }
# A specification begins with what excludes it, in parentheses, or "*".
zsh_options() {
    asked "$@" | sed -E 's/^(\([^)]*\))?\*?//' | grep -oE '^(--[a-z-]+|-[a-zA-Z])\[' | tr -d '[' | sort -u
}
for program in $programs; do
    same "zsh: $program" "$(options_of "$program")" "$(zsh_options "$program" '')"
done
for command in $subcommands; do
    same "zsh: atomic4ctl $command" "$(options_of atomic4ctl "$command")" \
        "$(zsh_options atomic4ctl -d vol.img --json "$command" '')"
done
same "zsh: atomic4ctl's commands" "$(sort <<<"$subcommands")" "$(
    sed 's/case $service in/_atomic4ctl_subcommands; exit; &/' "$completions/zsh/_atomic4" >commands.zsh
    zsh -fc '_describe() { print -rl -- "${(@P)4}" }; service=none; source ./commands.zsh' |
        sed 's/:.*//' | sort
)"
for option in --engine --backend --log-level; do
    same "zsh: atomic4d $option" "$(values_of atomic4d "$option")" \
        "$(asked atomic4d '' | sed -n "s/^$option\[.*:(\(.*\))$/\1/p" | tr ' ' '\n' | sort)"
done
asked atomic4ctl -d vol.img map '' | grep -x '2:path inside the volume: ' >/dev/null
asked atomic4ctl status '' | grep -x '2:path:_files' >/dev/null
