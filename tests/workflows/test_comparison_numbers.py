"""Which numbers a comparison takes up, which it leaves out and says so, and what an interval rests on."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
from conftest import present
from scipy import stats
from test_comparison import RECIPE, ROLES, N, answered, asked, made, resilient, row

from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import of_run
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.runs.store import Run
from ilu_cli.workflows.compare import Arm, Gap, arms_of, run, sentence
from ilu_cli.workflows.evaluate import results_folder


class Notes(Reporter):
    """Keeps what is said beside the results."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def rewritten(done: Run, bench: str, rows: list[dict[str, Any]], value: float | None, **more: Any) -> Run:
    """Other rows and another value than `answered` wrote."""
    folder = results_folder(of_run(done))
    summary = json.loads((folder / f"{bench}.json").read_text()) | {"value": value} | more
    (folder / f"{bench}.json").write_text(json.dumps(summary))
    (folder / f"{bench}.rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return done


def pair(**right: Any) -> list[Run]:
    return [answered(made(name, 0), **({"capitals": 6, "elements": 9, "prose": 2.0} | right)) for name in ("x", "y")]


def compared(a: Run, b: Run) -> tuple[dict[str, Gap], list[str]]:
    notes = Notes()
    found = run(RECIPE, [Arm("A", [a]), Arm("B", [b])], 0.05, notes)
    return {n["name"]: n for n in found["comparisons"][0]["numbers"]}, notes.said


def test_one_seed_each_is_a_paired_t_test_with_half_a_question_more(place: None) -> None:
    a, b = (
        answered(made("x", 0), capitals=9, elements=9, prose=2.0),
        answered(made("y", 0), capitals=3, elements=9, prose=2.0),
    )
    found = compared(a, b)[0]["capitals.acc"]
    difference = np.repeat([0.0, -1.0, 0.0], [3, 6, 3])
    variance = (((difference + 0.5) ** 2).sum() + 1) / (N * (N + 1))
    half = stats.t.ppf(0.975, N - 1) * math.sqrt(variance)
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((-0.5, -0.5 - half, -0.5 + half))
    assert found["freedom"] == N - 1
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(variance), N - 1))


def test_a_perplexity_of_other_rows_has_no_half_question(place: None) -> None:
    found = compared(*pair())[0]["prose.perplexity"]
    assert (found["low"], found["difference"], found["high"]) == (0, 0, 0)


def test_numbers_beside_the_headline_are_compared_and_take_no_side(place: None) -> None:
    runs = pair()
    for done, shift in zip(runs, (0.0, 0.25)):
        tagged = [{"metric": "rouge", "value": 0.25 + shift + 0.5 * (i % 2)} for i in range(4)]
        ppl = [{"metric": "said_ppl", "value": 2.0 + shift, "weight": 2} for _ in range(4)]
        also = {"rouge": {"value": 0.5 + shift}, "said_ppl": {"value": math.exp((2 + shift) / 2)}}
        head = [{"value": float(i < 6)} for i in range(N)]
        rewritten(done, "capitals", head + tagged + ppl, 0.5, also=also)
    found, notes = compared(*runs)
    assert notes == []
    assert [found["capitals.rouge"][k] for k in ("role", "sign", "relative", "n")] == ["forget", 0, False, 4]
    assert [found["capitals.rouge"][k] for k in ("a", "b", "difference")] == pytest.approx([0.5, 0.75, 0.25])
    assert [found["capitals.said_ppl"][k] for k in ("sign", "relative", "n")] == [0, True, 4]
    assert found["capitals.said_ppl"]["difference"] == pytest.approx(math.exp(0.125) - 1)


def test_what_is_no_mean_of_its_rows_is_left_out_with_a_note(place: None) -> None:
    runs = pair()
    rows = [{"value": float(i < 6)} for i in range(N)]
    for done in runs:
        rewritten(done, "capitals", rows, 0.5001)
    found, notes = compared(*runs)
    assert "capitals.acc" not in found
    assert notes == [f"capitals.acc of {arm} is not compared: it is no mean of its rows" for arm in "AB"]
    two = [*runs, *(answered(made("x", s), capitals=6, elements=9, prose=2.0) for s in (2, 3))]
    seen = Notes()
    run(RECIPE, [Arm("A", [two[0], two[2]]), Arm("B", [two[1], two[3]])], 0.05, seen)
    assert seen.said == [f"capitals.acc of {arm} is not compared: some runs have no such number" for arm in "AB"]


def test_a_value_near_0_may_differ_by_its_rounding(place: None) -> None:
    runs = pair()
    for done in runs:
        rewritten(done, "capitals", [{"value": 1e-10}] * N, 0.0)
    assert "capitals.acc" in compared(*runs)[0]


def test_collapsed_models_are_compared_without_an_overflow(place: None) -> None:
    runs = pair()
    for done, nll in zip(runs, (800.0, 900.0)):
        rewritten(done, "prose", [{"value": nll + i, "weight": 1} for i in range(N)], None, infinite=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = compared(*runs)
    prose = found["prose.perplexity"]
    assert [prose[k] for k in ("a", "b", "difference")] == [None, None, pytest.approx(math.exp(100) - 1)]
    assert prose["low"] == pytest.approx(math.exp(100) - 1)  # all texts are worse by as much
    runs = [answered(made("z", 0), capitals=6, elements=9, prose=2.0), runs[1]]
    worse = compared(*runs)[0]["prose.perplexity"]
    assert [worse[k] for k in ("a", "b", "difference")] == [pytest.approx(math.exp(3)), None, None]


def test_one_question_has_no_interval_and_the_sentence_says_so(place: None) -> None:
    runs = pair()
    for done, right in zip(runs, (1.0, 0.0)):
        for bench in ("capitals", "elements"):
            rewritten(done, bench, [{"value": right}], right)
    found, _ = compared(*runs)
    capitals = found["capitals.acc"]
    assert [capitals[k] for k in ("difference", "low", "high", "p", "freedom")] == [-1, None, None, None, None]
    said = sentence("A", "B", list(found.values()), 0.05, 2)
    assert "nothing can be said of capitals.acc: its difference has no interval" in said
    assert "utility not settled (elements.acc has no interval)" in said


def test_a_resilience_leaves_room_for_a_question_and_is_paired_by_what_was_asked(place: None) -> None:
    runs = [answered(made(n, 0, "attack", made(n, 0)), capitals=6, elements=9, prose=2.0) for n in ("x", "y")]
    for done in runs:
        resilient(done, {0: 1, 2: 6, 4: 6})
    same = compared(*runs)[0]["capitals.RA"]
    half = stats.t.ppf(0.975, N - 1) / math.sqrt(N * (N + 1))
    assert (same["difference"], same["low"], same["high"], same["paired"]) == pytest.approx((0, -half, half, True))
    for point in runs[1].manifest.result["points"]:
        point["eval"] = {"capitals": asked("other questions")}
    other = compared(*runs)[0]["capitals.RA"]
    assert not other["paired"] and present(other["high"]) > present(same["high"])


def test_only_accuracies_on_the_forget_topic_have_a_resilience(place: None) -> None:
    runs = [answered(made(n, 0, "attack", made(n, 0)), capitals=6, elements=9, prose=2.0) for n in ("x", "y")]
    for done in runs:
        resilient(done, {0: 1, 2: 6})
        for point in done.manifest.result["points"]:
            point["eval"] |= {b: asked(b, *ROLES[b]) for b in ("elements", "prose")}
        folder = done.eval / "steps-0000002"
        for bench in ("elements", "prose"):
            shutil.copyfile(folder / "capitals.rows.jsonl", folder / f"{bench}.rows.jsonl")
    assert [name for name in compared(*runs)[0] if name.endswith(".RA")] == ["capitals.RA"]


def test_arms_as_given_may_mix_recipes(place: None) -> None:
    one, two, three = made("x", 0), made("y", 0), made("z", 0)
    assert [[r.id for r in a.runs] for a in arms_of([one, two], [three])] == [[one.id, two.id], [three.id]]


def test_an_attack_whose_parent_is_gone_is_not_grouped(place: None) -> None:
    attacks = [made("relearn", s, "attack", made("x", s)) for s in (0, 1)]
    shutil.rmtree(attacks[0].manifest.parents[0]["path"])
    with pytest.raises(UnavailableError, match="is gone"):
        arms_of(attacks, [])


def test_a_difference_of_exactly_0_names_no_winner() -> None:
    flat = row("forget", 1, 0.0, 0.0)
    assert sentence("A", "B", [flat], 0.05, 2).startswith("no difference seen between B and A on n: +0.00 [0.00, 0.00]")


def test_an_arm_whose_runs_answered_different_questions_is_refused_with_what_to_do(place: None) -> None:
    runs = [answered(made(n, s), capitals=6, elements=9, prose=2.0) for s, n in enumerate(("x", "x", "y"))]
    path = results_folder(of_run(runs[1])) / "capitals.json"
    path.write_text(path.read_text().replace("capitals questions", "other questions"))
    with pytest.raises(UsageError, match=r"capitals\.acc: the runs of an arm answered different questions") as refused:
        run(RECIPE, [Arm("A", runs[:2]), Arm("B", runs[2:])], 0.05, Reporter())
    assert "same eval.limit and benchmarks" in present(refused.value.hint)


def test_the_order_of_numbers_hides_none() -> None:
    forget, none = row("forget", -1, -0.2, 0.1, "f"), row("utility", 1, 0.2, 0.1, "u") | {"low": None, "high": None}
    lower, same = row("utility", 1, -0.2, 0.1, "l"), row("utility", 1, 0.0, 0.01, "s")
    said = sentence("A", "B", [lower, none, same, forget], 0.05, 2)
    assert said.startswith("B forgets more than A on f")
    assert said == sentence("A", "B", [forget, lower, none, same], 0.05, 2)
    assert "lower utility of B (l" in sentence("A", "B", [none, same, lower], 0.05, 2)


def test_a_resilience_is_found_behind_other_benchmarks(place: None) -> None:
    recipe = EvalRecipe.model_validate(
        {"command": "eval", "eval": {"benchmarks": ["elements", "prose", "capitals"], "limit": N}}
    )
    runs = [answered(made(n, 0, "attack", made(n, 0)), capitals=6, elements=9, prose=2.0) for n in ("x", "y")]
    for done in runs:
        resilient(done, {0: 1, 2: 6})
    found = run(recipe, [Arm("A", runs[:1]), Arm("B", runs[1:])], 0.05, Reporter())
    assert "capitals.RA" in [n["name"] for n in found["comparisons"][0]["numbers"]]


def test_rows_of_an_attack_that_are_gone_are_named(place: None) -> None:
    runs = [answered(made(n, 0, "attack", made(n, 0)), capitals=6, elements=9, prose=2.0) for n in ("x", "y")]
    for done in runs:
        resilient(done, {0: 1, 2: 6, 4: 6})
    (runs[1].eval / "steps-0000004" / "capitals.rows.jsonl").unlink()
    with pytest.raises(UnavailableError, match=r"steps-0000004.*capitals\.rows\.jsonl cannot be read"):
        compared(*runs)


def test_rows_of_a_model_that_are_gone_are_named(place: None) -> None:
    runs = pair()
    (results_folder(of_run(runs[1])) / "elements.rows.jsonl").unlink()
    with pytest.raises(UnavailableError, match=r"elements\.rows\.jsonl cannot be read"):
        compared(*runs)
