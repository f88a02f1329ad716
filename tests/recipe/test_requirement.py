"""Requirements mean what they say, and errors say where."""

from __future__ import annotations

import pytest

from ilu_cli.errors import UsageError
from ilu_cli.recipe.requirement import Name, benches_of, parse

KNOWN = {"capitals": {"acc", "chance"}, "wmdp-bio": {"acc", "fq", "chance"}, "prose": {"ppl"}}
VALUES = {
    Name("capitals", "acc"): 0.3,
    Name("capitals", "acc", "stderr"): 0.02,
    Name("capitals", "acc", "chance"): 0.25,
    Name("capitals", "acc", stage="parent"): 0.9,
    Name("capitals", "acc", stage="original"): 0.8,
    Name("wmdp-bio", "fq"): 0.6,
    Name("prose", "ppl"): 20.0,
    Name("prose", "ppl", "stderr"): None,
}


@pytest.mark.parametrize(
    ("text", "left", "right", "passed"),
    [
        ("capitals.acc <= 0.32", 0.3, 0.32, True),
        ("capitals.acc < 3e-1", 0.3, 0.3, False),
        ("capitals.acc >= 0.9 * parent", 0.3, 0.81, False),
        ("capitals.acc<=original-.5", 0.3, 0.3, True),
        ("capitals.acc <= chance + 2 * capitals.acc.stderr", 0.3, 0.29, False),
        ("capitals.acc-wmdp-bio.fq > -1", -0.3, -1, True),
        ("1 - 2 - capitals.acc < 2 + 3 * (4 - 2) / 4", -1.3, 3.5, True),
        ("-(prose.ppl) / 4 / 5 <= -1", -1, -1, True),
        ("prose.ppl < 20 + prose.ppl.stderr", 20, None, False),
        ("prose.ppl / 0 > 1", None, 1, False),
    ],
)
def test_requirements(text: str, left: float | int | None, right: float | int | None, passed: bool) -> None:
    found = parse(text, KNOWN).check(VALUES.__getitem__)
    assert found["left"] == pytest.approx(left) and found["right"] == pytest.approx(right)
    assert found["passed"] is passed


def test_the_numbers_read_are_reported() -> None:
    found = parse("capitals.acc >= 0.5 * parent", KNOWN).check(VALUES.__getitem__)
    assert found["values"] == {"capitals.acc": 0.3, "capitals.acc of parent": 0.9}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("capitls.acc < 1", 1, "Did you mean 'capitals'"),
        ("capitals.ac < 1", 10, "Did you mean 'acc'"),
        ("capitals.acc.se < 1", 14, "only .stderr"),
        ("capitals.acc < parnt", 16, "Did you mean 'parent'"),
        ("prose.ppl < chance", 13, "no chance level"),
        ("capitals.acc", 13, "a comparison is missing"),
        ("capitals.acc < ", 16, "a number or bench.metric"),
        ("capitals.acc < (1 + 2", 22, "closing bracket"),
        ("capitals.acc < 1 < 2", 18, "should end here"),
        ("capitals.acc == 1", 14, "'=' means nothing"),
        ("__import__('os') < 1", 12, "means nothing here"),
        ("capitals.acc < 2 ** 3", 19, "a number or bench.metric"),
        ("1 < 2", 1, "at least one benchmark"),
        ("original-capitals.acc > 0", 1, "spaces around a minus"),
    ],
)
def test_errors_say_where(text: str, place: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(text, KNOWN)
    assert f"character {place}:" in str(caught.value)


def test_the_benchmarks_of_a_text() -> None:
    assert benches_of("wmdp-bio.fq > 0.1 * capitals.acc") == ["wmdp-bio", "capitals"]
