from __future__ import annotations

import functools
import random
from typing import Any

from ilu_cli.benchmarks import Row
from ilu_cli.data.tables import read_table
from ilu_cli.harness.task import HarnessTask, as_test_split
from ilu_cli.metrics.facts import Fact
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

TRANSLATED = {  # the sentence of the benchmark; a country stands in it as its table says, after the word for `capital`
    "French": "La capitale {name} s'appelle",
    "Spanish": "La capital {name} se llama",
    "German": "Die Hauptstadt {name} heißt",
}
ALIASES = ("official", "other")


def _question(country: Country) -> str:
    return f"The capital city of {country.full} is called"


@benchmark()
class Capitals(HarnessTask):
    """The world's capitals, four choices from the same continent (forget benchmark of the quickstart)."""

    def table(self) -> list[Country]:
        """The countries that it asks for."""
        return countries()

    def rephrasings(self, items: list[Row]) -> dict[str, list[Row]]:
        known = {
            _question(c): {"full": c.full, "Full": c.full[0].upper() + c.full[1:], "name": c.name} for c in self.table()
        }
        return {
            wording: [i | {"question": form.format(**known[i["question"]])} for i in items]
            for wording, form in WORDINGS.items()
        }

    def facts(self, items: list[Row]) -> list[Fact | None]:
        """A country is a subject of its own."""
        names = {_question(c): c.full for c in self.table()}
        asked = [(i["question"], i["choices"][i["answer"]]) for i in items]
        return [Fact(q, q, right, about=names.get(q, "")) for q, right in asked]

    def variants(self, kind: str, items: list[Row]) -> dict[str, list[Row]]:
        known = {_question(c): c for c in countries()}
        pairs = [(i, known[i["question"]]) for i in items]
        if kind == "translate":
            names = {r["country"]: r for r in read_table("countries_translated.tsv")}
            return {
                language: [i | {"question": form.format(name=names[c.name][language])} for i, c in pairs]
                for language, form in TRANSLATED.items()
            }
        if kind == "alias":
            return _aliases(pairs)
        if kind == "multihop":
            return {"river": [_river(i, c) for i, c in pairs if c.name in rivers()]}
        return super().variants(kind, items)


def _aliases(pairs: list[tuple[Row, Country]]) -> dict[str, list[Row]]:
    """The questions with the countries' other names, by kind of name; without those that have none."""
    names = {r["country"]: r for r in read_table("countries_aliases.tsv")}
    called = {k: [(i, names[c.name][k]) for i, c in pairs if c.name in names] for k in ALIASES}
    return {
        k: [i | {"question": f"The capital city of {name} is called"} for i, name in found if name != "-"]
        for k, found in called.items()
    }


@functools.cache
def rivers() -> dict[str, str]:
    """The river on which the capital lies, by country, where it is well known."""
    return {r["country"]: r["river"] for r in read_table("capital_rivers.tsv")}


def _river(item: Row, country: Country) -> Row:
    """The question for the river on which the capital lies, among three others of the continent, or if too few of all.

    The Americas count as one. The right choice stands where it stands in the item.
    """
    own, continent = rivers()[country.name], {c.name: c.continent.split()[-1] for c in countries()}
    near = {r for name, r in rivers().items() if continent[name] == continent[country.name]} - {own}
    others = sorted(near if len(near) >= 3 else set(rivers().values()) - {own})
    choices = random.Random(f"river-{country.name}").sample(others, 3)
    choices.insert(item["answer"], own)
    question = f"The river on which the capital of {country.full} lies is called the"
    return item | {"question": question, "choices": [f" {c}" for c in choices]}


def dataset(**_: object) -> dict[str, Any]:
    """The questions, as capitals.yaml asks for them."""
    return asked(countries())


def asked(table: list[Country]) -> dict[str, Any]:
    """A question for each country, whose wrong choices are capitals of the same continent."""
    found: list[Row] = []
    for country in table:
        rng = random.Random(f"capitals-{country.name}")
        others = [c.capital for c in table if c.continent == country.continent and c != country]
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
