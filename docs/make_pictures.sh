#!/bin/sh
# Draws docs/frag.svg, which README.md shows, with the built programs. (The maps there are the demo's:
# build/release/pictures.)
#   docs/make_pictures.sh [BIN_DIR]      BIN_DIR: default build/release/bin
# Needs no root: a volume is filled by debugfs, which allocates like any ext4 tool, first fit; then some of
# its files are removed.
set -eu

docs=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$docs/../build/release/bin}" && pwd)
PATH=$bin:$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Files of 1 to 400 blocks until the volume is 90 % full; then two of five are removed.
truncate -s 64M volume.img
mke2fs -q -t ext4 -b 4096 -U 9a3f5e54-8f5c-4f0e-9a3e-0c2d8b7c4a11 \
    -E hash_seed=9a3f5e54-8f5c-4f0e-9a3e-0c2d8b7c4a12 volume.img
awk 'BEGIN {
    srand(3)
    split("1 2 3 5 9 17 40 130 400", sizes)
    while (used < 11000) {
        blocks = sizes[int(rand() * 9) + 1]
        print "write data" blocks, "f" ++files
        used += blocks
    }
    for (i = 1; i <= files; ++i)
        if (rand() < 0.4) print "rm f" i
}' >commands
for blocks in 1 2 3 5 9 17 40 130 400; do head -c $((blocks * 4096)) /dev/zero | tr '\0' x >data$blocks; done
debugfs -w -f commands volume.img >/dev/null 2>&1
atomic4ctl enable -l 8M volume.img >/dev/null 2>&1
atomic4ctl frag --svg "$docs/frag.svg" volume.img
