# What the scripts that measure on the real model share, sourced by them: WORK holds the runs, ILU is the program.
work=${WORK:?a folder for the runs}
ilu=${ILU:-ilu}
export ILU_RUNS="$work/runs"
mkdir -p "$ILU_RUNS"

finished() { grep -q '"status": "complete"' "$1/manifest.json" 2> /dev/null; }
