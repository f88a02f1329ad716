"""Each warning: data that give cause for it, and data that do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from ilu_cli.care.measured import collapsed
from ilu_cli.care.steps import temperature_alone
from ilu_cli.report import warnings
from ilu_cli.report.numbers import Estimate
from ilu_cli.runs.results import Summary, kind_of


def summary(value: float, *, metric: str = "acc", n: int = 170, stderr: float | None = 0.01) -> Summary:
    return Summary("b", metric, kind_of(metric), "forget", value, stderr, n, 0.25)


def steps(gap: list[float], nll: list[float]) -> list[dict[str, Any]]:
    """Two values each, at the beginning and at the end of 20 steps, with a little noise."""
    rows = []
    for i in range(20):
        share, noise = i / 19, 0.002 * math.sin(7 * i)
        rows.append({"step": i + 1} | {
            f"{k}[e]": a + (b - a) * share + noise for k, (a, b) in (("D", gap), ("nll", nll))
        })  # fmt: skip
    return rows


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "builtin data": (
        lambda: warnings.builtin_data([{"name": "capitals", "source": "builtin"}]),
        lambda: warnings.builtin_data([{"name": "wmdp", "source": "hub"}, {"name": "x.jsonl", "source": "path"}]),
    ),
    "below chance": (
        lambda: warnings.over_unlearned("m", summary(0.10)),
        lambda: warnings.over_unlearned("m", summary(0.22)),
    ),
    "babble": (
        lambda: collapsed("m", summary(300.0, metric="ppl", stderr=20), summary(80.0, metric="ppl")),
        lambda: collapsed("m", summary(170.0, metric="ppl", stderr=20), summary(80.0, metric="ppl")),
    ),
    "temperature, too sure": (
        lambda: temperature_alone("m", "e", steps([0.5, 0.02], [2.0, 2.0])),
        lambda: temperature_alone("m", "e", steps([0.5, 0.02], [2.0, 1.6])),
    ),
    "temperature, too unsure": (
        lambda: temperature_alone("m", "e", steps([-0.5, -0.02], [2.0, 2.02])),
        lambda: temperature_alone("m", "e", steps([0.02, 0.02], [2.0, 2.0])),
    ),
    "utility": (
        lambda: warnings.utility_unmatched("a", "b", "elements", Estimate(-0.08, -0.12, -0.04)),
        lambda: warnings.utility_unmatched("a", "b", "elements", Estimate(-0.02, -0.06, 0.02)),
    ),
    "attack was environment": (
        lambda: warnings.attack_was_environment("m", [{"name": "gsm8k"}], [{"name": "gsm8k"}]),
        lambda: warnings.attack_was_environment("m", [{"name": "gsm8k"}], [{"name": "sst2"}]),
    ),
    "one seed": (lambda: warnings.one_seed([("a", 3), ("b", 1)]), lambda: warnings.one_seed([("a", 3), ("b", 2)])),
    "reference": (
        lambda: warnings.reference_missing([("sst2", False)]),
        lambda: warnings.reference_missing([("sst2", True)]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_warns_where_there_is_cause_and_only_there(case: str) -> None:
    cause, none = CASES[case]
    assert cause()
    assert none() is None


def test_few_steps_say_nothing_about_temperature() -> None:
    assert temperature_alone("m", "e", steps([0.5, 0.0], [2.0, 2.0])[:9]) is None
