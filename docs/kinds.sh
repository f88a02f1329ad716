#!/bin/sh
# The table "With a public relative" in docs/attacks.md: `WORK=folder sh docs/kinds.sh`. The quickstart's RMU is made, and a fine-tune of the
# original, which stands for what an attacker finds in public; then kinds that need no more than that attack it once, and the
# original. What WORK holds already is not run again.
set -eu
docs=$(cd "$(dirname "$0")" && pwd)
. "$docs/work.sh"

once() { # NAME KIND KEY=VALUE…
    name=$1 kind=$2
    shift 2
    [ ! -s "$work/$name.json" ] || return 0
    for key; do shift; set -- "$@" --set "attack.$key"; done
    $ilu attack "$ILU_RUNS/rmu" --kind "$kind" "$@" --set 'eval.benchmarks=[capitals]' --json > "$work/part"
    mv "$work/part" "$work/$name.json"
}

if ! finished "$ILU_RUNS/relative"; then
    rm -rf "$ILU_RUNS/relative"
    $ilu attack smollm2-135m --task sst2 --no-reference --steps 24 --lr 2e-4 \
        --set attack.batch=8 --set attack.test_rows=50 --out "$ILU_RUNS/relative"
fi
if ! finished "$ILU_RUNS/rmu"; then
    rm -rf "$ILU_RUNS/rmu"
    $ilu unlearn --recipe quickstart-rmu --out "$ILU_RUNS/rmu"
fi
once merge merge finetuned=relative
once strip strip model=relative 'directions=[1,4]'
once interpolate interpolate model=relative 'ts=[0.5,0.75]'
