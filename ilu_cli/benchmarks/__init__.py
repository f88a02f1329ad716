"""Benchmarks, one per file. Each yields a row per example, so that intervals and paired tests cost nothing more."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Literal

from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

Row = dict[str, Any]


class Benchmark:
    """Base. `role` is what a good unlearned model does: `forget` it, or keep it as `utility`."""

    role: Literal["forget", "utility"]
    metric: str = "acc"
    chance: float | None = None
    higher: str = "knows more"
    source: str = "builtin"
    reads: tuple[tuple[str, str], ...] = ()  # (task, split) on the hub that `items` loads

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
        """One row per item, with a number `value` (and `weight`, for ratios)."""
        raise NotImplementedError

    def summarise(self, rows: list[Row]) -> tuple[float, float]:
        """Value and standard error; here the mean of `value`."""
        return mean_and_error([r["value"] for r in rows])

    def rephrasings(self, items: list[Row]) -> dict[str, list[Row]]:
        """The same items in other words or languages, by the name of the wording; here there are none."""
        return {}

    def details(self, rows: list[Row]) -> dict[str, Any]:
        """What else is worth keeping beside the value."""
        return {}

    def fingerprint(self, items: list[Row]) -> str:
        """sha256 of the items."""
        return hashlib.sha256(json.dumps([type(self).__name__, items], sort_keys=True).encode()).hexdigest()


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


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, s/√n with the unbiased s; NaN for the error of a single value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
