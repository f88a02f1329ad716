#!/bin/sh
# The whole chain on a real model: forget the world's capitals; ask whether film reviews bring them back, and whether text about the
# countries does that names no capital; forget them in another way and ask that again; show both on one page.
set -eu

say() { printf "\033[1m%s\033[0m\n" "$*" >&"${TO:-2}"; } # TO=1: with the results, not beside them

step() {
    say ""
    say "# $*"
}

show() {
    say "$ $*"
    began=$(date +%s)
    "$@"
    say "($(($(date +%s) - began)) s)"
}

step "Forget the world's capitals, by RMU with the invariance penalty of ILU"
show ilu unlearn --method rmu --irm-env gsm8k
step "Fine-tune on film reviews: do they come back?"
show ilu attack --task sst2
show ilu eval
show ilu taskvec
step "Fine-tune on text about the countries that names no capital: do they come back?"
show ilu attack --kind relearn_benign --steps 24 --lr 2e-4
step "Forget them again, along directions that other knowledge does not use, and ask the same"
show ilu unlearn --recipe quickstart-repselect
show ilu attack --kind relearn_benign --steps 24 --lr 2e-4
step "Both on one page"
show ilu report
