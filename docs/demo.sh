#!/bin/sh
# The whole chain on a real model: forget the world's capitals, fine-tune on film reviews, measure, explain.
set -eu

show() {
    printf '\n\033[1m$ %s\033[0m\n' "$*" >&2
    "$@"
}

show ilu unlearn --method rmu --irm-env gsm8k
show ilu attack --task sst2
show ilu eval
show ilu taskvec
show ilu report
