"""Quantisation, pruning, projection, demonstrations and benign text on what can be worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from conftest import present
from torch.testing import assert_close

from ilu_cli.attacks.ablate import basis, without
from ilu_cli.attacks.fewshot import demonstrated
from ilu_cli.attacks.prune import without_smallest
from ilu_cli.attacks.quantize import round_to_nearest
from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.engine.probe import fit_choices
from ilu_cli.errors import UsageError
from ilu_cli.registry import task
from ilu_cli.runs.results import Point, Summary
from ilu_cli.tasks.capitals import countries
from ilu_cli.workflows.attack.attempt import unseen
from ilu_cli.workflows.attack.protocol import result_of

LETTERS = [" A", " B", " C", " D"]


def test_rounding_to_three_bits() -> None:
    w = torch.tensor([[3.0, -1.4, 0.6, -0.4]])  # Δ = 3 / 3
    assert round_to_nearest(w, 3).tolist() == [[3.0, -1.0, 1.0, 0.0]]
    assert round_to_nearest(w, 3, group=2)[0, :2].tolist() == [3.0, -1.0]
    assert_close(round_to_nearest(w, 3, group=2)[0, 2:], torch.tensor([0.6, -0.4]))  # Δ = 0.2
    assert round_to_nearest(torch.zeros(2, 3), 4).equal(torch.zeros(2, 3))


def test_pruning_takes_the_smallest() -> None:
    w = torch.tensor([[3.0, -1.0], [0.5, -2.0]])
    assert without_smallest(w, 0.5).tolist() == [[3.0, 0.0], [0.0, -2.0]]


def test_the_first_direction_is_the_mean_difference_and_projection_removes_it() -> None:
    differences = torch.tensor([[2.0, 0.1, 0.0], [2.0, -0.1, 0.0]])
    b = basis(differences, 2)
    assert_close(b[:, 0].abs(), torch.tensor([1.0, 0.0, 0.0]))
    assert_close(b[:, 1].abs(), torch.tensor([0.0, 1.0, 0.0]))
    assert_close(without(torch.tensor([[5.0, 6.0, 7.0]]), b), torch.tensor([[0.0, 0.0, 7.0]]))


def test_a_probe_finds_the_feature_that_marks_the_right_choice() -> None:
    g = torch.Generator().manual_seed(0)
    x, answers = [torch.randn(4, 5, generator=g) for _ in range(40)], [i % 4 for i in range(40)]
    for f, a in zip(x, answers):
        f[a, 2] += 8
    score = fit_choices(x[:30], answers[:30], 1e-3)
    assert [int(score(f).argmax()) for f in x[30:]] == answers[30:]


def items(answers: list[int], choices: list[list[str]], heading: str = "") -> list[dict[str, Any]]:
    return [{"question": f"{heading}{i}?", "choices": c, "answer": a} for i, (a, c) in enumerate(zip(answers, choices))]


def test_demonstrations_leave_out_an_answer_that_is_a_fact_but_not_a_letter() -> None:
    facts = items([0, 1, 0], [[" Oslo", " Rome"], [" Bonn", " Oslo"], [" Rome", " Bonn"]])
    assert demonstrated(facts, 1, 0, "|")[0]["question"] == "2? Rome|0?"  # 1 has the same answer
    letters = items([0, 0, 0, 0, 1], [LETTERS] * 4 + [LETTERS[:3]], "On letters.\n\n")
    shown = demonstrated(letters, 4, 0, "|")
    parts = shown[0]["question"].removeprefix("On letters.\n\n").split("|")
    assert sorted(parts) == ["0?", "1? A", "2? A", "3? A", "4? B"]
    assert all(s["question"].count("On letters") == 1 for s in shown)


@pytest.mark.parametrize("choices", [[[" a", " b"], [" c", " a"], [" d", " e"]], [LETTERS] * 3])
def test_more_demonstrations_than_there_are_questions_are_refused(choices: Any) -> None:
    demonstrated(items([0, 0, 0], choices), 2, 0, "|")
    with pytest.raises(UsageError, match=r"attack\.k: there are 2 other questions"):
        demonstrated(items([0, 0, 0], choices), 3, 0, "|")


def test_unseen_counts_the_questions_whose_answer_no_text_names() -> None:
    rows = items([0, 1, 0], [[" Oslo", " Rome"], [" Bonn", " Lima"], [" Rome", " Bonn"]])
    for row, value in zip(rows, (1.0, 0.0, 1.0)):
        row["value"] = value
    assert unseen(["Lima is a capital."], rows) == {"value": 1.0, "stderr": 0.0, "n": 2}
    assert unseen(["Oslo and Rome."], rows) == {"value": 0.0, "stderr": None, "n": 1}
    assert unseen([], rows) is None
    assert unseen(["No letter stands in for a fact"], [r | {"choices": LETTERS} for r in rows]) is None


def test_no_capital_stands_in_the_benign_text() -> None:
    rows = [r["text"] for split in ("train", "test") for r in task["surroundings"].obj().builtin(split)]
    assert len(set(rows)) == len(rows) >= 150
    text = "\n".join(rows)
    assert [c.capital for c in countries() if re.search(rf"\b{re.escape(c.capital)}\b", text)] == []


def test_other_wordings_ask_for_the_capital_in_words_that_are_not_the_benchmarks() -> None:
    bench = Capitals()
    asked = bench.rephrasings(bench.items()[:1])
    assert list(asked) == list(bench.rephrasings([]))
    for wording, [item] in asked.items():
        assert "The capital city of" not in item["question"]
        assert "Hauptstadt" in item["question"] if wording == "German" else "capital" in item["question"].lower()


def test_ra_is_over_the_quartiles_of_a_training_and_over_all_other_strengths() -> None:
    def point(strength: int, acc: float) -> Point:
        return Point("x", strength, {"b": Summary("b", "acc", "share", "forget", acc, 0.1)})

    points = [point(0, 0.2), point(3, 0.3), point(6, 0.4), point(9, 0.9), point(12, 0.5)]
    found = result_of(points, None, 0, quarters=True)
    assert found.marks == (3, 6, 12)
    assert abs(present(found.ra) - (0.7 + 0.6 + 0.5) / 3) < 1e-12
    assert abs(present(found.worst) - 0.1) < 1e-12
    assert abs(present(result_of(points, None, 0, quarters=False).ra) - (0.7 + 0.6 + 0.1 + 0.5) / 4) < 1e-12
    uneven = result_of([point(s, s / 100) for s in (0, 1, 4, 9, 16)], None, 0, quarters=True)
    assert uneven.marks == (4, 9, 16)  # the nearest to 4, 8 and 16, not the first
