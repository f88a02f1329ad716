"""What an evaluation must satisfy: `capitals.acc <= 0.32`, `elements.acc >= 0.9 * parent`.

    requirement = sum ("<=" | ">=" | "<" | ">") sum
    sum         = product {("+" | "-") product}
    product     = factor {("*" | "/") factor}
    factor      = ["-"] (number | bench.metric[.stderr] | "parent" | "original" | "chance" | "(" sum ")")

`parent` and `original` are the first bench.metric of the requirement, measured on the parent or the original model;
`chance` is what guessing scores on it. Nothing is ever evaluated as Python.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ilu_cli.errors import UsageError, brief, near

LONGEST = 500  # characters
STAGES = ("parent", "original")
OPERATORS: dict[str, Callable[[float, float], Any]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
COMPARISONS = ("<=", ">=", "<", ">")
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][\w:]*(?:-\w+)*(?:\.[A-Za-z_]\w*){1,2})|(?P<word>[A-Za-z_]\w*)|(?P<number>\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
    r"|(?P<sign><=|>=|[-+*/()<>]))"
)
# A number, a Name, or (operator, left, right).
Expression = Any


@dataclass(frozen=True)
class Name:
    """A measured number: `stage` is "" (the model itself), parent or original; `part` value, stderr or chance."""

    bench: str
    metric: str
    part: str = "value"
    stage: str = ""


class Verdict(TypedDict):
    """A requirement as it was written, both its sides, and every number that it read."""

    require: str
    left: float | None
    right: float | None
    values: dict[str, float | None]
    passed: bool


@dataclass(frozen=True)
class Requirement:
    """A parsed requirement."""

    text: str
    tree: Expression

    @property
    def names(self) -> list[Name]:
        """The numbers it reads, as they stand in it."""
        return _names(self.tree)

    def check(self, lookup: Callable[[Name], float | None]) -> Verdict:
        """Evaluate it: both sides, the numbers read, and the verdict.

        A number that is not known (the error of a single row, a division by 0) fails the requirement, and so does
        comparing an infinite number, as the perplexity of a collapsed model, with another.
        """
        values = {label(n): lookup(n) for n in self.names}
        sign, left, right = self.tree
        left, right = (_value(side, lookup) for side in (left, right))
        passed = False
        if left is not None and right is not None and not (math.isinf(left) and math.isinf(right)):
            passed = bool(OPERATORS[sign](left, right))
        return {"require": self.text, "left": left, "right": right, "values": values, "passed": passed}


def label(name: Name) -> str:
    """`capitals.acc`, `elements.acc of parent`."""
    part = "" if name.part == "value" else f".{name.part}"
    return f"{name.bench}.{name.metric}{part}" + (f" of {name.stage}" if name.stage else "")


def benches_of(text: str) -> list[str]:
    """The benchmarks that a text names, whether or not it parses."""
    return [m["name"].split(".")[0] for m in _TOKEN.finditer(text) if m["name"]]


def parse(text: str, known: Mapping[str, Collection[str]]) -> Requirement:
    """Parse a requirement and check its names.

    Args:
        text: as the user wrote it.
        known: the metrics of every benchmark; `chance` among them if guessing has a score; an
            empty collection accepts any.

    Raises:
        UsageError: with the position of what is wrong, and the nearest known name.
    """
    return Requirement(text, _Parser(text, known).requirement())


def _names(node: Expression) -> list[Name]:
    if isinstance(node, Name):
        return [node]
    return [n for side in node[1:] for n in _names(side)] if isinstance(node, tuple) else []


def _value(node: Expression, lookup: Callable[[Name], float | None]) -> float | None:
    if isinstance(node, Name):
        return lookup(node)
    if not isinstance(node, tuple):
        return float(node)
    left, right = (_value(side, lookup) for side in node[1:])
    if left is None or right is None or (node[0] == "/" and right == 0):
        return None
    return float(OPERATORS[node[0]](left, right))


class _Parser:
    """Recursive descent over the tokens (kind, text, position)."""

    def __init__(self, text: str, known: Mapping[str, Collection[str]]) -> None:
        self.text, self.known, self.at = text, known, 0
        if len(text) > LONGEST:
            raise self.error(f"it has {len(text):,} characters; at most {LONGEST} are read", LONGEST)
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                raise self.error(f"{text[place]!r} means nothing here", place)
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()
        self.tokens.append(("end", "", len(text)))
        first = next((t for t in self.tokens if t[0] == "name"), None)
        if first is None:
            raise self.error("a requirement reads at least one benchmark, as bench.metric", 0)
        self.first = self.name(*first[1:])

    def error(self, message: str, place: int) -> UsageError:
        return UsageError(f"requirement {brief(self.text)}, character {place + 1}: {message}")

    def take(self, *signs: str) -> str | None:
        """The next token if it is one of the signs."""
        if self.tokens[self.at][1] not in signs:
            return None
        self.at += 1
        return self.tokens[self.at - 1][1]

    def requirement(self) -> Expression:
        left = self.sum()
        sign = self.take(*COMPARISONS)
        if sign is None:
            raise self.error(f"a comparison is missing ({', '.join(COMPARISONS)})", self.tokens[self.at][2])
        right = self.sum()
        if self.tokens[self.at][0] != "end":
            raise self.error("the requirement should end here", self.tokens[self.at][2])
        return sign, left, right

    def sum(self) -> Expression:
        return self.chain(self.product, "+", "-")

    def product(self) -> Expression:
        return self.chain(self.factor, "*", "/")

    def chain(self, part: Callable[[], Expression], *signs: str) -> Expression:
        node = part()
        while sign := self.take(*signs):
            node = (sign, node, part())
        return node

    def factor(self) -> Expression:
        if self.take("-"):
            return "-", 0.0, self.factor()
        if self.take("("):
            inner = self.sum()
            if not self.take(")"):
                raise self.error("a closing bracket is missing", self.tokens[self.at][2])
            return inner
        kind, text, place = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return float(text)
        if kind == "name":
            return self.name(text, place)
        if kind == "word":
            return self.word(text, place)
        raise self.error("a number or bench.metric is missing", place)

    def name(self, text: str, place: int) -> Name:
        bench, metric, *rest = text.split(".")
        if bench not in self.known:
            spaced = " Put spaces around a minus." if "-" in bench else ""
            raise self.error(f"unknown benchmark {bench!r}.{near(bench, self.known)}{spaced}", place)
        metrics = sorted(set(self.known[bench]) - {"chance"})
        if self.known[bench] and metric not in metrics:
            message = f"{bench} has no {metric!r}.{near(metric, metrics)} It has {', '.join(metrics)}"
            raise self.error(message, place + len(bench) + 1)
        if rest and rest != ["stderr"]:
            raise self.error(f"only .stderr may follow a metric, not .{rest[0]}", place + len(text) - len(rest[0]))
        return Name(bench, metric, *rest)

    def word(self, text: str, place: int) -> Name:
        words = (*STAGES, "chance")
        if text not in words:
            raise self.error(f"unknown word {text!r}.{near(text, [*words, *self.known])}", place)
        if text in STAGES:
            return Name(self.first.bench, self.first.metric, stage=text)
        if self.known[self.first.bench] and "chance" not in self.known[self.first.bench]:
            raise self.error(f"{self.first.bench} has no chance level", place)
        return Name(self.first.bench, self.first.metric, "chance")
