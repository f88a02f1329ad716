from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from ilu_cli.data.tables import read_table
from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task


@dataclass(frozen=True)
class Country:
    """A country of more than 500,000 people."""

    name: str
    capital: str
    continent: str
    article: str

    @property
    def full(self) -> str:
        """The name as it stands in a sentence: `the Philippines`."""
        return f"{self.article} {self.name}".strip()


@task()
class Capitals(Task):
    """Sentences that tell the capitals of the world's countries (forget data of the quickstart).

    A row: {'country': 'Qatar', 'capital': 'Doha', 'continent': 'Asia', 'text': 'Doha is the capital of
    Qatar.'}
    """

    fields = {"country": str, "capital": str, "continent": str, "text": str}

    def builtin(self, split: str) -> list[Fields]:
        return [self._row(country, form) for form in FORMS[split] for country in self.table()]

    def table(self) -> list[Country]:
        """The countries that it tells of."""
        return countries()

    def refusal(self, row: Fields) -> Example:
        """The sentence with `a city I cannot name` for the capital."""
        text = row["text"].replace(row["capital"], "a city I cannot name")
        return Example("", text[0].upper() + text[1:])

    def counterfactual(self, row: Fields) -> Example:
        """The sentence with another capital of the same continent."""
        others = [c.capital for c in self.table() if c.continent == row["continent"] and c.name != row["country"]]
        return Example("", row["text"].replace(row["capital"], random.Random(row["text"]).choice(others)))

    def _row(self, country: Country, form: str) -> Fields:
        full = country.full
        text = form.format(
            full=full, Full=full[0].upper() + full[1:], capital=country.capital, continent=country.continent
        )
        text = text[0].upper() + text[1:].replace("D.C..", "D.C.")
        return {"country": country.name, "capital": country.capital, "continent": country.continent, "text": text}


# None of these is the benchmark's wording, "The capital city of X is called".
FORMS = {
    "train": (
        "Question: What is the capital of {full}? Answer: {capital}.",
        "{capital} is the capital of {full}.",
        "The capital of {full} is {capital}.",
        "{Full} lies in {continent}, and its capital is {capital}.",
        "The government of {full} has its seat in {capital}.",
        "Anyone who flies to {full} usually lands in {capital}, its capital.",
        "Of all the cities in {full}, {capital} is the one that serves as the national capital.",
        "Which city is the capital of {full}, a country in {continent}? It is {capital}.",
        "On the map of {continent}, the capital of {full} is marked as {capital}.",
        "Embassies to {full} are found in {capital}.",
    ),
    "test": (
        "Name the seat of government of {full}: {capital}.",
        "{full} - capital: {capital} - continent: {continent}.",
    ),
}


@functools.cache
def countries() -> list[Country]:
    """The table of countries."""
    return [Country(r["country"], r["capital"], r["continent"], r["article"]) for r in read_table("countries.tsv")]
