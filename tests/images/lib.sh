# shellcheck shell=bash
# What make_case.sh and run_case.sh share, on top of what the command-line tests do. The volume is
# vol.img in the current directory.
IMAGES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../cli/lib.sh
. "$IMAGES/../cli/lib.sh"

need_what_fsck_needs() {
    need_root
    [ -c /dev/fuse ] || skip "no /dev/fuse"
    need_program jq xz e2fsck debugfs
}

# one_run >FILE: fsck.atomic4 -fy, as it is compared.
one_run() {
    local status=0
    fsck.atomic4 -fy vol.img >"$T/.run" 2>&1 || status=$?
    sed -f "$IMAGES/filter.sed" "$T/.run"
    echo "Exit status is $status"
}

# files_after >FILE: all files and what they hold, and where the atomic ones lie.
files_after() {
    local path
    if has_feature vol.img FEATURE_I28; then
        echo "It can't be looked into: it needs a replay"
        return
    fi
    rm -rf "$T/.files"
    mkdir "$T/.files"
    debugfs -R "rdump / $T/.files" vol.img >/dev/null 2>&1
    (cd "$T/.files" && find . -type f ! -path './.atomic4/log' -print0 | LC_ALL=C sort -z |
        xargs -0 -r sha256sum | sed 's|^\(.\{16\}\)[^ ]*  \.|\1 |')
    rm -rf "$T/.files"
    if ! atomic4ctl --json -d vol.img ls >"$T/.ls" 2>/dev/null; then
        echo "Atomic files can't be listed"
        return
    fi
    while read -r path; do
        echo "$path: $(atomic4ctl --json -d vol.img map "$path" |
            jq -c '[.unit, [.runs[] | [.offset, .device_offset, .length, .state]]]')"
    done < <(jq -r '.[].path' "$T/.ls" | LC_ALL=C sort)
}

# two_runs DIRECTORY: vol.img is repaired, and what is seen of that is stored there.
two_runs() {
    one_run >"$1/expect.1"
    one_run >"$1/expect.2"
    files_after >"$1/expect.files"
}
