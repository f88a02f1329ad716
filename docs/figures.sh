#!/bin/sh
# The figures of the README from a real run of the demo: `sh docs/figures.sh > docs/figures.txt`; with REPORT=FOLDER the page too.
set -eu
ILU_RUNS=$(mktemp -d)
export ILU_RUNS
trap 'rm -rf "$ILU_RUNS"' EXIT
echo "ilu $(ilu --version | cut -d' ' -f2), $(nproc) cores, $(date -u +%F)"
TO=1 sh docs/demo.sh >"$ILU_RUNS/told"
sed "s|$ILU_RUNS|runs|g; s/$(printf '\033')\[[0-9]*m//g" "$ILU_RUNS/told"
[ -z "${REPORT:-}" ] || cp -r "$ILU_RUNS"/reports/*/. "$REPORT"
