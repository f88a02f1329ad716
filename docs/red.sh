#!/bin/sh
# The searched attacker's figures in docs/attacks.md: `WORK=folder sh docs/red.sh`. The quickstart's RMU and NPO are made, then
# searched by TPE and at random, by as many trials. What WORK holds already is not run again: trials that both samplers ask for
# (the first five) are run once. METHODS and PARTS (of tpe, random, listed) choose.
set -eu
docs=$(cd "$(dirname "$0")" && pwd)
. "$docs/work.sh"

cp "$docs/bench/red.yaml" "$work/tpe.yaml"
sed 's/trials: 8/trials: 12\n      sampler: random/' "$docs/bench/red.yaml" > "$work/random.yaml"
cp "$docs/bench/red-listed.yaml" "$work/listed.yaml"
for method in ${METHODS:-rmu npo}; do
    if ! finished "$work/$method"; then
        rm -rf "${work:?}/$method"
        $ilu unlearn --recipe "quickstart-$method" --out "$work/$method"
    fi
    for part in ${PARTS:-tpe random listed}; do
        $ilu attack "$work/$method" --suite "$work/$part.yaml" --markdown "$work/$method-$part.md" --json > "$work/$method-$part.json"
    done
done
