#!/bin/sh
# The study of docs/study.md: `sh docs/study.sh`. About two hours on two cores; what ILU_RUNS holds already is not run again.
set -eu
docs=$(dirname "$0")
ilu pipeline grid-quickstart --markdown "$docs/study/table.md"
cp "${ILU_RUNS:-runs}/grid-quickstart/results.json" "$docs/study/results.json"
report=$(mktemp -d)
trap 'rm -rf "$report"' EXIT
ilu report grid-quickstart --out "$report"
cp "$report/figures/overview.svg" "$docs/images/study.svg"
