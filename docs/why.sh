#!/bin/sh
# The runs behind docs/why.md: `WORK=folder sh docs/why.sh`. Each method is made by its shipped recipe, attacked by text near the topic, and
# looked into by `interpolate` and `patch`. What WORK holds already is not run again; METHODS chooses. The page is then written by
# `ILU_RUNS=folder/runs python docs/why.py`.
set -eu
docs=$(cd "$(dirname "$0")" && pwd)
. "$docs/work.sh"

made() { # NAME ARGUMENT…
    run=$ILU_RUNS/$1
    shift
    ! finished "$run" || return 0
    rm -rf "$run"
    $ilu "$@" --out "$run"
}

look() { # METHOD KIND ARGUMENT…: an attack; the questions are scored in bf16, which some CPUs do many times as fast
    method=$1 kind=$2
    shift 2
    made "$method-$kind" attack "$ILU_RUNS/$method" --kind "$kind" "$@" \
        --set 'eval.benchmarks=[capitals]' --set eval.precision=bf16 --no-reference
}

for method in ${METHODS:-rmu grad_diff simnpo wga crl npo repnoise repselect}; do
    made "$method" unlearn --recipe "quickstart-$method"
    look "$method" relearn_benign --steps 24 --lr 2e-4 --set attack.batch=8 --set keep=final
    look "$method" interpolate --set 'attack.ts=[0.25,0.5,0.75,1.0]'
    look "$method" patch
done
