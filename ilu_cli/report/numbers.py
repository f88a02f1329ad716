"""Intervals and paired differences: 95% everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from ilu_cli.metrics.figure import value_of

Z = NormalDist().inv_cdf(0.975)
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5% of Student's t, 1 to 10 d.o.f.


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; without one if the data give none. `over` says what the interval ranges over."""

    value: float
    low: float | None = None
    high: float | None = None
    over: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the bare value twice."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is there and does not hold 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t, beyond the table by its expansion around the normal's."""
    if freedom <= len(T):
        return T[freedom - 1]
    first, second = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion: it stays within [0, 1], and is not empty at 0 and 1."""
    scale = 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def of_summary(summary: dict[str, Any]) -> Estimate:
    """A benchmark's result: Wilson's interval for an accuracy, else the normal one; over the examples."""
    value, error = value_of(summary), summary["stderr"]
    if summary["metric"] == "acc":
        return Estimate(value, *wilson(value, summary["n"]), over="examples")
    if error is None:
        return Estimate(value)
    return Estimate(value, value - Z * error, value + Z * error, over="examples")


def of_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student interval over seeds; a single seed has no interval, nor have values of which one is infinite."""
    mean, n = fmean(values), len(values)
    if n < 2 or math.isinf(mean):
        return Estimate(mean)
    half = student(n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, over="seeds")


def of_differences(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Estimate | None:
    """a − b of two results, over seeds; None if one of the results is infinite."""
    values = [(value_of(a), value_of(b)) for a, b in pairs]
    infinite = any(math.isinf(x) for pair in values for x in pair)
    return None if infinite else of_seeds([a - b for a, b in values])


def of_runs(summaries: Sequence[dict[str, Any]]) -> Estimate:
    """The same benchmark on runs that differ in their seed: over seeds, or for one run over its examples."""
    if len(summaries) == 1:
        return of_summary(summaries[0])
    return of_seeds([value_of(s) for s in summaries])


def of_pairs(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a − b over the same examples, with its normal interval."""
    d = [x - y for x, y in zip(a, b)]
    mean = fmean(d)
    if len(d) < 2:
        return Estimate(mean)
    half = Z * stdev(d) / math.sqrt(len(d))
    return Estimate(mean, mean - half, mean + half, over="examples")
