"""A step of ILU against one of RMU alone: what the invariance penalty on 8 rows of gsm8k adds.

python docs/bench/ilu_step.py [--repeats 7] [--set train.packing=false]

Recipe quickstart-rmu on the built-in model, with and without `irm` on gsm8k. Here `plain` is RMU, and the ratio is of
ILU to RMU; `ilu_s` is the step with the penalty.
"""

from __future__ import annotations

from steps import Step, compare, stepping, trainer_of

PENALTY = "regularizers=[{name: irm, env: [gsm8k], batch: 8, weight: 1.0}]"


def plain(sets: list[str]) -> Step:
    return stepping(trainer_of("quickstart-rmu", sets))


def ilu(sets: list[str]) -> Step:
    return stepping(trainer_of("quickstart-rmu", [PENALTY, *sets]))


if __name__ == "__main__":
    compare(__file__, "ilu_step", {"plain": plain, "ilu": ilu})
