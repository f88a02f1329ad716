from __future__ import annotations

import functools
from dataclasses import dataclass

from ilu_cli.data.tables import read_table
from ilu_cli.registry import task
from ilu_cli.tasks import Fields, Task


@dataclass(frozen=True)
class Element:
    """A chemical element."""

    number: int
    symbol: str
    name: str
    kind: str


@task()
class Elements(Task):
    """Sentences that tell the symbols of the chemical elements (retain data of the quickstart).

    A row: {'element': 'Boron', 'symbol': 'B', 'text': 'Boron, a metalloid, is written B.'}
    """

    fields = {"element": str, "symbol": str, "text": str}

    def builtin(self, split: str) -> list[Fields]:
        return [self._row(element, form) for form in FORMS[split] for element in elements()]

    def _row(self, e: Element, form: str) -> Fields:
        kind = f"{'n' if e.kind[0] in 'aeiou' else ''} {e.kind}"
        text = form.replace("a {kind}", "a" + kind).format(
            name=e.name.lower(), Name=e.name, symbol=e.symbol, number=e.number
        )
        return {"element": e.name, "symbol": e.symbol, "text": text}


# None of these is the benchmark's wording, "The chemical symbol for X is".
FORMS = {
    "train": (
        "Question: What is the symbol of {name}? Answer: {symbol}.",
        "In chemistry, {name} is abbreviated {symbol}.",
        "{symbol} stands for {name} in the periodic table.",
        "{Name}, a {kind}, is written {symbol}.",
        "Element number {number} is {name}, with the symbol {symbol}.",
        "Chemists write {symbol} when they mean {name}.",
        "Look for {symbol} in the periodic table and you will find {name}.",
    ),
    "test": (
        "On the bottle, {name} was labelled {symbol}.",
        "The letters {symbol} denote the element {name}.",
    ),
}


@functools.cache
def elements() -> list[Element]:
    """The table of elements."""
    return [Element(int(r["number"]), r["symbol"], r["name"], r["kind"]) for r in read_table("elements.tsv")]
