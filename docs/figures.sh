#!/bin/sh
# The figures of the README from a real run of the four commands: `sh docs/figures.sh > docs/figures.txt`
set -eu
ILU_RUNS=$(mktemp -d)
export ILU_RUNS
trap 'rm -rf "$ILU_RUNS"' EXIT

show() {
    printf '\n$ %s\n' "$*"
    began=$(date +%s)
    "$@" | sed "s|$ILU_RUNS|runs|g"
    printf '(%s s)\n' "$(($(date +%s) - began))"
}

echo "ilu $(ilu --version | cut -d' ' -f2), $(nproc) cores, $(date -u +%F)"
show ilu unlearn --method rmu --irm-env gsm8k
show ilu attack --task sst2
show ilu eval
show ilu taskvec
show ilu report --out "${REPORT:-$ILU_RUNS/report}"
