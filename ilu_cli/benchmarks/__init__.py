"""Benchmarks, one per file. Each yields a row per example, so that intervals and paired tests cost nothing more."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic_core import to_jsonable_python

from ilu_cli.errors import UsageError
from ilu_cli.metrics.facts import Fact, subjects_by_words
from ilu_cli.metrics.figure import Figure as Figure
from ilu_cli.metrics.figure import number as number
from ilu_cli.runs.results import Kind, Role
from ilu_cli.runs.results import Row as Row

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

KNOWS_MORE = "knows more"  # of whom a higher number is; of a perplexity it is of whom reads worse


class Benchmark:
    """Base. `role` is what a good unlearned model does: `forget` it, or keep it as `utility`.

    A class with a metric of its own says what `kind` of number it is (`ilu_cli.runs.results.Kind`), and with `kinds`
    which of the `others` are no ratios: by that they count in FQ and RA, and are compared, drawn and written.
    """

    role: Role
    metric: str = "acc"
    kind: Kind = "share"
    chance: float | None = None
    higher: str = KNOWS_MORE
    source: str = "builtin"
    reads: tuple[tuple[str, str], ...] = ()  # (task, split) on the hub that `items` loads
    others: tuple[str, ...] = ()  # numbers that it yields beside `metric`
    kinds: Mapping[str, Kind] = {}  # of those
    keys: Mapping[str, Any] = {}  # its own keys that a recipe gives; its __init__ takes them
    by_content: tuple[str, ...] = ()  # of those: what they point at is in its `fingerprint`, so that their text is not
    asks: tuple[str, ...] = ()  # forget data that it asks for; none: those of its own name
    retains: bool = False  # it asks also, by its design, what retain data teach

    def __init_subclass__(cls) -> None:
        own = vars(cls)
        if unknown := {own.get("kind", ""), *cls.kinds.values()} - {"", *get_args(Kind)}:
            raise UsageError(f"{cls.__qualname__}: kind {unknown.pop()!r} is none of {', '.join(get_args(Kind))}")
        if own.get("kind") == "loss" and "higher" not in own:
            cls.higher = "reads worse"
        if "metric" in own and "kind" not in own:
            raise UsageError(
                f"{cls.__qualname__}: the metric {cls.metric!r} has no kind",
                hint="kind = 'share' for a mean of values from 0 to 1, 'ratio' for another, 'loss' for a perplexity",
            )

    @property
    def up(self) -> bool:
        """Whether a model of a higher number can do more."""
        return self.higher == KNOWS_MORE

    def items(self) -> list[Row]:
        """The examples, each with all that scoring needs."""
        raise NotImplementedError

    def first(self, limit: int | None) -> list[Row]:
        """The first items, as many as `limit` says."""
        return self.items()[:limit]

    def fewshot(self, n: int) -> None:
        """Put `n` solved examples before each question.

        Raises:
            UsageError: if this benchmark has no place for them.
        """
        raise UsageError(f"eval.fewshot: {type(self).__name__} takes no few-shot examples")

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        """Rows with a number `value` (and `weight`, for ratios). Those of another number than `metric` name it."""
        raise NotImplementedError

    def summarise(self, rows: list[Row]) -> tuple[float, float]:
        """Value and standard error of `metric`, from its rows."""
        return estimate_of(self.kind, rows)

    def also(self, rows: list[Row]) -> dict[str, Figure]:
        """The other numbers, by name; here those that rows name."""
        groups = {name: rs for name, rs in by_metric(rows).items() if name}
        return {name: number(*estimate_of(self.kind_of(name), rs)) for name, rs in groups.items()}

    def kind_of(self, metric: str) -> Kind:
        """The kind of one of its numbers."""
        return self.kind if metric in ("", self.metric) else self.kinds.get(metric, "ratio")

    def rephrasings(self, items: list[Row]) -> dict[str, list[Row]]:
        """The same items in other words or languages, by the name of the wording; here there are none.

        Of no items, the names alone: a recipe is checked against them.
        """
        return {}

    def variants(self, kind: str, items: list[Row]) -> dict[str, list[Row]]:
        """The items asked in other ways of a kind (`rephrase`, `alias`, …), by name; an item without one is left out.

        Of no items, the names alone, as in `rephrasings`.
        """
        return self.rephrasings(items) if kind == "rephrase" else {}

    def facts(self, items: list[Row]) -> list[Fact | None]:
        """The fact that each item asks for, to teach some and to ask others; None where it asks for none.

        Here, of multiple-choice items the right choice; questions that share their rare words are of one subject.
        """
        asked = [{"question", "choices", "answer"} <= i.keys() for i in items]
        if not all(asked) or not items:
            return [None] * len(items)
        names, right = own_choices(items), [i["choices"][i["answer"]] for i in items]
        texts = [f"{i['question']} {' '.join(i['choices'])}" for i in items]
        subjects = subjects_by_words(texts)
        return [Fact(s, i["question"], a, names) for s, i, a in zip(subjects, items, right)]

    def details(self, rows: list[Row]) -> Row:
        """What else is worth keeping beside the value."""
        return {}

    def fingerprint(self, items: list[Row]) -> str:
        """sha256 of the items, and of its own keys where a recipe gives any."""
        keys = {k: v for k, v in self.keys.items() if k not in self.by_content}
        told = json.dumps(
            [type(self).__name__, items, *([keys] if keys else [])], sort_keys=True, default=to_jsonable_python
        )
        return hashlib.sha256(told.encode()).hexdigest()


class MultipleChoice(Benchmark):
    """Items are `{question, choices, answer}`; the choice of the highest summed log-probability is the prediction."""

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        from ilu_cli.engine.scoring import Question

        scores = scorer.loglikelihoods([Question(i["question"], tuple(i["choices"])) for i in items])
        rows = []
        for item, logps in zip(items, scores):
            prediction = max(range(len(logps)), key=logps.__getitem__)
            rows.append(
                {
                    "question": item["question"],
                    "choices": item["choices"],
                    "answer": item["answer"],
                    "prediction": prediction,
                    "logps": [round(x, 6) for x in logps],
                    "value": float(prediction == item["answer"]),
                }
            )
        return rows


def own_choices(items: list[Row]) -> bool:
    """Whether items have choices of their own, so that an answer's text is the fact: not where all have A, B, C, D."""
    return len({c for i in items for c in i["choices"]}) > max(len(i["choices"]) for i in items)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, s/√n with the unbiased s; NaN for the error of a single value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def by_metric(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by the number they belong to; "" is the headline."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("metric", ""), []).append(row)
    return groups


def estimate(rows: list[Row]) -> tuple[float, float]:
    """Value and standard error of one number: the mean of `value`, or with weights Σ value / Σ weight.

    The error of the ratio is by the delta method. NaN for the error of a single row.
    """
    if "weight" not in rows[0]:
        return mean_and_error([r["value"] for r in rows])
    weights, n = sum(r["weight"] for r in rows), len(rows)
    ratio = sum(r["value"] for r in rows) / weights
    if n < 2:
        return ratio, math.nan
    spread = sum((r["value"] - ratio * r["weight"]) ** 2 for r in rows) * n / (n - 1)
    return ratio, math.sqrt(spread) / weights


def estimate_of(kind: Kind, rows: list[Row]) -> tuple[float, float]:
    """Value and standard error of a number of this kind."""
    return perplexity(rows) if kind == "loss" else estimate(rows)


def perplexity(rows: list[Row]) -> tuple[float, float]:
    """exp of the ratio, where `value` is a summed NLL and `weight` its tokens; error by the delta method.

    Infinite, with an error that is not known, where it is beyond any floating-point number.
    """
    loss, error = estimate(rows)
    try:
        value = math.exp(loss)
    except OverflowError:
        return math.inf, math.nan
    return value, value * error


def interleave(parts: list[list[Row]]) -> list[Row]:
    """The items of several parts in turn, so that the first few are some of each."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
