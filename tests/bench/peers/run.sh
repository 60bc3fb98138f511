#!/bin/sh
# The daemon beside everything that makes durable writes today, on one loop device with direct I/O:
# a table, the targets, and a plot.
#   tests/bench/peers/run.sh [--smoke|--short|--long] [--svg FILE] [--only PART-OF-NAME] [BIN_DIR]
# BIN_DIR: default build/release/bin. By default about 3 minutes; --short about 20 seconds, and only
# the nearest peers; --long half an hour. Needs root, 3 GiB of real space, and a quiet machine.
# Exit 0 if everything ran, also where a target is MISSED; 1 for a crash or a wrong result.
set -u

usage() { echo "usage: $0 [--smoke|--short|--long] [--svg FILE] [--only PART-OF-NAME] [BIN_DIR]" >&2; exit 2; }
form=
svg=
only=
bin=$(dirname "$0")/../../../build/release/bin
while [ $# -gt 0 ]; do
    case "$1" in
        --smoke | --short | --long) form=$1 ;;
        --svg) [ $# -gt 1 ] || usage; svg=$2; shift ;;
        --only) [ $# -gt 1 ] || usage; only=$2; shift ;;
        -*) usage ;;
        *) bin=$1 ;;
    esac
    shift
done
bin=$(cd "$bin" && pwd) || exit 1
# shellcheck source=tests/bench/workspace.sh
. "$(dirname "$0")/../workspace.sh"

# shellcheck disable=SC2086  # no form is no word
run "$bin/bench_peers" $form ${svg:+--svg "$svg"} ${only:+--only "$only"}
