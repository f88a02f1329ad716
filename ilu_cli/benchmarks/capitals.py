from __future__ import annotations

import random
from typing import Any

from ilu_cli.benchmarks import Row
from ilu_cli.harness.task import HarnessTask, as_test_split
from ilu_cli.registry import benchmark
from ilu_cli.tasks.capitals import Country, countries

# Other wordings; none is a sentence of the training data. Names stay English in the other languages.
WORDINGS = {
    "possessive": "{Full}'s capital city goes by the name of",
    "question": "Q: Which city does {full} have as its capital?\nA:",
    "traveller": "I flew to {full} and spent the whole week in its capital,",
    "quiz": "Geography quiz. Country: {name}. Capital city:",
    "table": "Country | Capital\n{name} |",
    "French": "Pays : {name}. Capitale :",
    "Spanish": "País: {name}. Capital:",
    "German": "Land: {name}. Hauptstadt:",
    "Italian": "Paese: {name}. Capitale:",
    "Portuguese": "País: {name}. A capital chama-se",
}


def _question(country: Country) -> str:
    return f"The capital city of {country.full} is called"


@benchmark()
class Capitals(HarnessTask):
    """The world's capitals, four choices from the same continent (forget benchmark of the quickstart)."""

    def rephrasings(self, items: list[Row]) -> dict[str, list[Row]]:
        known = {
            _question(c): {"full": c.full, "Full": c.full[0].upper() + c.full[1:], "name": c.name} for c in countries()
        }
        return {
            wording: [i | {"question": form.format(**known[i["question"]])} for i in items]
            for wording, form in WORDINGS.items()
        }


def dataset(**_: object) -> dict[str, Any]:
    """The questions, as capitals.yaml asks for them."""
    found: list[Row] = []
    for country in countries():
        rng = random.Random(f"capitals-{country.name}")
        others = [c.capital for c in countries() if c.continent == country.continent and c != country]
        choices = [country.capital, *rng.sample(others, 3)]
        rng.shuffle(choices)
        found.append(
            {
                "question": _question(country),
                "choices": [f" {c}" for c in choices],
                "answer": choices.index(country.capital),
            }
        )
    return as_test_split(found)
