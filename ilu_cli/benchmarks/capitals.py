from __future__ import annotations

import random

from ilu_cli.benchmarks import MultipleChoice, Row
from ilu_cli.registry import benchmark
from ilu_cli.tasks.capitals import countries


@benchmark()
class Capitals(MultipleChoice):
    """The world's capitals, four choices from the same continent (forget benchmark of the quickstart)."""

    role = "forget"
    chance = 0.25

    def items(self) -> list[Row]:
        found = []
        for country in countries():
            rng = random.Random(f"capitals-{country.name}")
            others = [c.capital for c in countries() if c.continent == country.continent and c != country]
            choices = [country.capital, *rng.sample(others, 3)]
            rng.shuffle(choices)
            found.append(
                {
                    "question": f"The capital city of {country.full} is called",
                    "choices": [f" {c}" for c in choices],
                    "answer": choices.index(country.capital),
                }
            )
        return found
