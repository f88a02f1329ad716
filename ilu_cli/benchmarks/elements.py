from __future__ import annotations

import random
from typing import Any

from ilu_cli.benchmarks import Row
from ilu_cli.harness.task import HarnessTask, as_test_split
from ilu_cli.registry import benchmark
from ilu_cli.tasks.elements import elements


@benchmark()
class Elements(HarnessTask):
    """Symbols of the chemical elements, four choices (utility benchmark of the quickstart)."""


def dataset(**_: object) -> dict[str, Any]:
    """The questions, as elements.yaml asks for them."""
    found: list[Row] = []
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
    return as_test_split(found)
