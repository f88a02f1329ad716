"""Results that mean nothing: each warning with figures that give cause for it, and with some that do not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ilu_cli import care
from ilu_cli.care import measured
from ilu_cli.runs.results import Learned, Summary, kind_of


def summary(value: float, *, n: int = 100, metric: str = "acc", chance: float | None = 0.25, **kw: Any) -> Summary:
    return Summary("b", metric, kind_of(metric), kw.pop("role", "forget"), value, kw.pop("stderr", 0.01), n, chance)


@pytest.mark.parametrize(
    ("value", "n", "fires"),
    [
        (0.33, 100, True),  # 0.25 + 2 √(0.25·0.75/100) = 0.3366
        (0.34, 100, False),
        (0.28, 1000, False),  # 0.2774
        (0.27, 1000, True),
        (0.00, 100, True),
        (0.25, 19, False),  # too few rows to say anything
        (0.25, 20, True),
    ],
)
def test_at_chance_is_within_two_standard_errors_of_guessing(value: float, n: int, fires: bool) -> None:
    assert bool(measured.at_chance("m", summary(value, n=n))) is fires


def test_without_a_chance_nothing_is_at_chance() -> None:
    assert measured.at_chance("m", summary(0.0, chance=None)) is None
    assert measured.at_chance("m", summary(9.0, metric="ppl")) is None


def test_an_attack_whose_accuracy_is_that_of_a_constant_answer_learned_nothing() -> None:
    def learned(value: float, chance: float | None) -> care.Warned | None:
        return measured.fa_at_chance("a", Learned("sst2", value, 0.03, 200, 60, chance=chance))

    assert learned(0.55, 0.52)  # 0.52 + 2·0.0353 = 0.59
    assert learned(0.60, 0.52) is None
    assert learned(0.0, 0.0)
    assert learned(0.01, 0.0) is None
    assert learned(0.5, None) is None  # a run of before, which did not keep it


def test_a_collapsed_model_reads_twice_as_badly_beyond_its_error() -> None:
    def told(after: float, stderr: float | None) -> care.Warned | None:
        first = summary(80.0, metric="ppl", chance=None)
        return measured.collapsed("m", summary(after, metric="ppl", chance=None, stderr=stderr), first)

    assert told(300.0, 20.0)
    assert told(math.inf, None)
    assert told(180.0, 20.0) is None  # 180 − 1.96·20 < 160


def rows(predictions: list[int], answers: list[int], logps: tuple[float, float] = (-1.0, -2.0)) -> list[dict[str, Any]]:
    return [
        {"prediction": p, "answer": a, "logps": list(logps), "value": float(p == a)}
        for p, a in zip(predictions, answers)
    ]


def test_the_same_choice_for_every_question_is_a_constant_answer() -> None:
    def told(found: list[dict[str, Any]]) -> list[str]:
        return [w.id for w in measured.of_rows("b", "acc", "forget", found)]

    mixed = [i % 4 for i in range(40)]
    assert told(rows([0] * 40, mixed)) == ["constant-answers"]
    assert told(rows(mixed, mixed)) == []
    assert told(rows([0] * 40, [0] * 40)) == []  # it is right
    assert told(rows(mixed, mixed, (-1.0, -1.0))) == ["constant-answers"]  # uniform
    assert told(rows([0] * 19, mixed[:19])) == []


def test_text_that_loops_is_degenerate() -> None:
    def told(values: list[float]) -> list[str]:
        return [w.id for w in measured.of_rows("coherence", "coherence", "utility", [{"value": v} for v in values])]

    assert told([0.1, 0.3]) == ["degenerate-text"]
    assert told([0.9, 0.4]) == []


def test_only_the_original_is_looked_at_for_chance_and_the_others_for_collapse() -> None:
    guess, text = summary(0.25), summary(80.0, metric="ppl", chance=None, role="utility")
    broken = summary(900.0, metric="ppl", chance=None, role="utility")
    wanted = summary(900.0, metric="ppl", chance=None, role="forget")  # of the forget topic that is the aim
    u = {"b": guess, "p": broken, "f": wanted}
    found = care.once(measured.along([("o", True, {"b": guess, "p": text, "f": text}), ("u", False, u)]))
    assert [w.id for w in found] == ["benchmark-at-chance", "collapsed"]
    assert care.once(measured.along([("u", False, {"b": guess, "p": broken})])) == []


def test_a_warning_is_kept_with_its_remedy_and_an_unknown_one_is_left_out() -> None:
    told = care.Warned("zero-loss", "x").to_json()
    assert told == {"id": "zero-loss", "text": "x", "remedy": care.KINDS["zero-loss"].remedy}
    assert care.read([told, {"id": "of-a-later-version", "text": "y"}]) == [care.Warned("zero-loss", "x")]
    with pytest.raises(AssertionError, match="not declared"):
        care.Warned("nonsense", "x")
