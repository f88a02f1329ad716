"""A step of NPO, whose forget and retain rows are run one after the other, or as one batch (`train.together`).

python docs/bench/together.py [--repeats 7] [--set train.precision=fp32]

Recipe quickstart-npo on the built-in model: 16 forget and 8 retain rows, all weights trained; the same steps both ways.
"""

from __future__ import annotations

from steps import Step, compare, stepping, trainer_of


def apart(sets: list[str]) -> Step:
    return stepping(trainer_of("quickstart-npo", ["train.steps=40", *sets, "train.together=false"]))


def together(sets: list[str]) -> Step:
    return stepping(trainer_of("quickstart-npo", ["train.steps=40", *sets]))


if __name__ == "__main__":
    compare(__file__, "together", {"plain": apart, "ilu": together})
