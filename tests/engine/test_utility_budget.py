"""A budget by what a benchmark loses: the last measured weights within it are what a run ends with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, items_of, stream, tiny_model, trainer

from ilu_cli.defences.averaging import Averaging
from ilu_cli.engine.budget import UtilityBudget
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.errors import RunFailed
from ilu_cli.metrics.figure import lost
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe


def fresh(steps: int = 12, lr: float = 0.01) -> Trainer:
    terms = [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")]
    return trainer(tiny_model(), terms, [], lr=lr, steps=steps, optimizer="sgd")


def flat(t: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.params.values()])


def budget(t: Trainer, values: Callable[[int], float], limit: float, every: int) -> UtilityBudget:
    """`values` by the number of steps done; before the first it is 1."""
    asked: list[int] = []

    def measure() -> float:
        asked.append(t.step + 1 if asked else 0)
        return values(asked[-1])

    found = UtilityBudget("elements", measure, lambda a, b: a - b, limit, lambda s: s % every == 0)
    t.budget = found
    return found


def test_the_last_measured_weights_within_it_are_what_is_left() -> None:
    t, plain = fresh(), fresh(steps=6)
    used = budget(t, lambda step: 1 - 0.01 * step, 0.07, every=3)
    logs = list(t.run())
    list(plain.run())
    told = [log.losses.get("lost[elements]") for log in logs[:6]]
    assert told == [None, None, pytest.approx(0.03), None, None, pytest.approx(0.06)]
    assert t.step == 6 and len(logs) == 8  # 7 and 8 are taken back with 9
    torch.testing.assert_close(flat(t), flat(plain), rtol=0, atol=0)
    facts = {"benchmark": "elements", "start": 1.0, "lost": pytest.approx(0.06), "limit": 0.07}
    assert used.facts() == facts | {"beyond": pytest.approx(0.09)}
    assert used.told() == "elements lost 0.06"


def test_one_that_is_never_reached_is_told_by_what_was_lost() -> None:
    t = fresh(steps=6)
    used = budget(t, lambda step: 1.0, 0.0, every=3)
    list(t.run())
    assert (t.step, used.over, used.told()) == (6, None, "elements lost 0")


def test_first_steps_beyond_it_are_named() -> None:
    t = fresh()
    budget(t, lambda step: 1 - 0.1 * step, 0.2, every=4)
    with pytest.raises(RunFailed, match=r"the first 4 steps go beyond the budget: elements lost 0\.4, where 0\.2 is"):
        list(t.run())


def test_a_run_that_goes_on_knows_the_weights_to_go_back_to(tmp_path: Path) -> None:
    """Stopped after step 5, between the measurements after 4 and 6."""
    values: Callable[[int], float] = lambda step: 1.0 if step < 6 else 0.0  # noqa: E731
    whole, first, second = fresh(), fresh(), fresh()
    for t in (whole, first, second):
        budget(t, values, 0.5, every=2)
    list(whole.run())
    for log in first.run():
        if log.step == 5:
            save_state(first, tmp_path)
            break
    assert load_state(second, tmp_path) == 5
    assert list(second.run()) == [] and second.step == whole.step == 4
    torch.testing.assert_close(flat(second), flat(whole), rtol=0, atol=0)


def test_shares_lose_points_and_perplexities_a_share_of_themselves() -> None:
    assert lost("share", 0.9, 0.8, up=True) == pytest.approx(0.1) == lost("loss", 100.0, 110.0, up=False)
    assert lost("ratio", 0.8, 0.6, up=True) == pytest.approx(0.25) == -lost("ratio", 0.8, 0.6, up=False)
    assert lost("loss", math.inf, math.inf, up=False) == 0 == lost("ratio", 0.0, 0.0, up=True)
    assert lost("loss", math.inf, 9.0, up=False) == -1
    assert lost("loss", 9.0, math.inf, up=False) == math.inf == lost("ratio", 0.0, 0.1, up=False)


def test_a_collapse_is_written_without_infinite_numbers() -> None:
    t = fresh()
    used = budget(t, lambda step: 1 - 0.01 * step if step < 4 else -math.inf, 0.07, every=2)
    list(t.run())
    wanted = {"lost": pytest.approx(0.02), "limit": 0.07, "beyond": None, "infinite": "beyond"}
    assert used.facts() == {"benchmark": "elements", "start": 1.0, **wanted}


def test_what_an_average_costs_is_measured_of_the_average() -> None:
    """Its weights are none that the budget has seen."""
    t = fresh()
    t.defences = [Averaging(start=1, every=2)]
    t.budget = UtilityBudget("x", lambda: float(flat(t).norm()), lambda a, b: a - b, 10.0, lambda s: s % 2 == 0)
    list(t.run())
    last = t.budget.facts()["lost"]
    t.finish()
    assert t.budget.facts()["lost"] == t.budget.start - float(flat(t).norm()) != last


def test_a_coherence_is_judged_by_the_original_and_lost_where_it_falls(ilu: Ilu, tiny: Path) -> None:
    """As `ilu eval` measures both models afterwards."""
    sets = ["train.budget={benchmark: coherence, loss: 2, every: 4, limit: 3}", "train.steps=4", "train.lr=0.05"]
    sets += ["forget.batch=4", "retain=null", "train.precision=fp32"]
    args = [x for text in sets for x in ("--set", text)]
    done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--json", *args)
    assert done.code == 0, done.err
    told: Any = json.loads(done.out)
    asked = ilu("eval", told["path"], "--bench", "coherence", "--set", "eval.limit=3", "--json")
    before, after = (stage["results"]["coherence"]["value"] for stage in json.loads(asked.out)["lineage"])
    assert before != after
    budget = told["result"]["budget"]
    assert (budget["start"], budget["lost"]) == pytest.approx((before, 1 - after / before))


def test_a_run_has_rows_of_the_steps_that_are_left(ilu: Ilu, tiny: Path) -> None:
    sets = ["train.budget={benchmark: prose, loss: 0.05, every: 2, limit: 6}", "train.optimizer=sgd", "train.lr=0.02"]
    sets += ["train.steps=40", "forget.batch=4", "forget.data=[{name: prose, limit: 16}]", "retain=null"]
    args = [x for text in [*sets, "train.precision=fp32"] for x in ("--set", text)]
    done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--json", *args)
    assert done.code == 0, done.err
    told: Any = json.loads(done.out)
    used, steps = told["result"]["budget"], told["result"]["steps"]
    assert used["lost"] <= 0.05 < used["beyond"] and steps % 2 == 0 and 0 < steps < 40
    rows = [json.loads(line) for line in (Path(told["path"]) / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, steps + 1))
    assert rows[-1]["lost[prose]"] == used["lost"]


def test_recipes_of_before_keep_their_hash_and_both_forms_read_back() -> None:
    def dumped(text: str) -> Any:
        made = load(UnlearnRecipe, None, {}, ["objective.name=npo", "forget.data=capitals", f"train.budget={text}"])
        return made.model_dump()["train"]["budget"]

    assert set(dumped("{kl: 0.1}")) == {"kl", "data", "rows", "max_length"}
    kept = dumped("{benchmark: elements, loss: 0.1}")
    assert kept["benchmark"] == "elements" and "every" not in kept and dumped(json.dumps(kept)) == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "name what it is measured by"),
        ("{kl: 0.1, benchmark: elements}", "name what it is measured by"),
        ("{kl: 0.1, loss: 0.1}", "belongs to a budget by a benchmark"),
        ("{benchmark: elements, rows: 3}", "belongs to a budget by kl"),
        ("{benchmark: elemments}", "elements"),
        ("{benchmark: capitals}", "measures what is to be forgotten"),
    ],
)
def test_what_is_no_budget_is_refused_with_the_recipe(ilu: Ilu, text: str, message: str) -> None:
    done = ilu("unlearn", "--method", "npo", "--dry-run", "--set", f"train.budget={text}")
    assert done.code == 2 and "train.budget" in done.err and message in done.err


def test_a_mean_of_steps_that_are_taken_back_is_refused(ilu: Ilu) -> None:
    sets = ("--set", "train.budget={benchmark: elements}", "--defence", "averaging")
    done = ilu("unlearn", "--method", "npo", "--dry-run", *sets)
    assert done.code == 2 and "set train.budget.every to 1" in done.err


@pytest.mark.parametrize(
    ("second", "message"),
    [("{benchmark: elements, loss: 0.2}", "train.budget is not that of A"), ("null", "this one has no train.budget")],
)
def test_methods_are_matched_at_equal_budgets_alone(ilu: Ilu, second: str, message: str) -> None:
    text = """
command: pipeline
methods:
  A: {recipe: quickstart-rmu, set: {train.budget: {benchmark: elements}}}
  B: {recipe: quickstart-npo, set: {train.budget: SECOND}}
match: budget
suite: quick
"""
    Path("p.yaml").write_text(text.replace("SECOND", second))
    done = ilu("pipeline", "p.yaml", "--dry-run")
    assert done.code == 2 and message in done.err and "methods.B" in done.err
