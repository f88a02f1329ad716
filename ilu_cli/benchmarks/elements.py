from __future__ import annotations

import random

from ilu_cli.benchmarks import MultipleChoice, Row
from ilu_cli.registry import benchmark
from ilu_cli.tasks.elements import elements


@benchmark()
class Elements(MultipleChoice):
    """Symbols of the chemical elements, four choices (utility benchmark of the quickstart)."""

    role = "utility"
    chance = 0.25

    def items(self) -> list[Row]:
        found = []
        for element in elements():
            rng = random.Random(f"elements-{element.name}")
            choices = [element.symbol, *rng.sample([e.symbol for e in elements() if e != element], 3)]
            rng.shuffle(choices)
            found.append(
                {
                    "question": f"The chemical symbol for {element.name.lower()} is",
                    "choices": [f" {c}" for c in choices],
                    "answer": choices.index(element.symbol),
                }
            )
        return found
