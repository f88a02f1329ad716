#!/bin/sh
# The table of `atlas` in docs/attacks.md: `WORK=folder sh docs/atlas.sh`. A model is taught invented capitals, made to forget them by
# three methods, and attacked beside the model of before, which never knew. What WORK holds already is not run again.
set -eu
docs=$(cd "$(dirname "$0")" && pwd)
. "$docs/work.sh"

taught="$work/taught"
if ! finished "$taught"; then
    rm -rf "$taught"
    $ilu attack smollm2-135m --recipe atlas-teach --no-reference --out "$taught"
fi
for method in ${METHODS:-rmu npo simnpo}; do
    if ! finished "$work/$method"; then
        rm -rf "${work:?}/$method"
        $ilu unlearn --recipe "atlas-$method" --set "model.ref=$taught" --out "$work/$method"
    fi
    $ilu attack "$work/$method" --suite "$docs/bench/atlas.yaml" --markdown "$work/$method.md" --json > "$work/$method.json"
done
