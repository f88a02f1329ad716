"""A budget that says how long the steps are: any learning rate ends at the same weights, in about so many steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Ilu, items_of, stream, tiny_model, trainer

from ilu_cli.engine.budget import Budget
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.errors import RunFailed

LIMIT, STEPS = 0.02, 10


def fitted(lr: float, steps: int = STEPS, lasting: int = STEPS) -> tuple[Trainer, Budget]:
    terms = [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")]
    t = trainer(tiny_model(), terms, [], lr=lr, steps=steps, optimizer="sgd")
    t.budget = found = Budget.of(stream(items_of([9, 7], seed=5), name="budget"), LIMIT, t.grads, (lasting, lr))
    return t, found


@pytest.mark.parametrize("lr", [1e-3, 0.1, 50.0])
def test_the_first_step_spends_its_part_whatever_the_rate_is(lr: float) -> None:
    t, budget = fitted(lr)
    logs = list(t.run())
    assert logs[0].losses["budget kl"] == pytest.approx(LIMIT / STEPS**2, rel=0.1)
    assert {log.lr for log in logs} == {budget.scale * lr}
    other, theirs = fitted(0.02)
    list(other.run())
    assert budget.scale * lr == pytest.approx(theirs.scale * 0.02, rel=0.1)
    assert budget.spent <= LIMIT and budget.facts()["lr"] == budget.scale * lr


def test_all_steps_are_as_long_as_by_hand() -> None:
    """The same as plain steps at the rate that was found."""
    t, budget = fitted(0.5, steps=4)
    list(t.run())
    terms = [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")]
    plain = trainer(tiny_model(), terms, [], lr=0.5 * budget.scale, steps=4, optimizer="sgd")
    list(plain.run())
    for a, b in zip(t.params.values(), plain.params.values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lr", [1e-3, 0.1, 0.13, 0.2, 50.0])
def test_one_step_alone_is_within_the_budget(lr: float) -> None:
    t, budget = fitted(lr, steps=1, lasting=1)
    list(t.run())
    assert 0.8 * LIMIT <= budget.spent <= LIMIT


def test_a_resumed_run_keeps_the_scale(tmp_path: Path) -> None:
    whole, _ = fitted(0.5)
    list(whole.run())
    t, _ = fitted(0.5)
    for _ in zip(range(3), t.run()):
        save_state(t, tmp_path / "s")
    again, budget = fitted(0.5)
    load_state(again, tmp_path / "s")
    assert budget.scale != 1
    list(again.run())
    assert again.step == whole.step
    for a, b in zip(again.params.values(), whole.params.values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_run_that_goes_on_before_the_step_that_is_taken_back_knows_what_was_spent(tmp_path: Path) -> None:
    t, first = fitted(0.5, steps=40)
    for _ in t.run():
        save_state(t, tmp_path / "s")
    again, budget = fitted(0.5, steps=40)
    load_state(again, tmp_path / "s")
    assert list(again.run()) == [] and first.over is not None
    assert budget.facts() == first.facts()


def test_the_budget_is_told_of_the_mean_that_is_saved(ilu: Ilu, tiny: Path) -> None:
    found = []
    for averaging in ([], ["defences=[{name: averaging, start: 0, every: 1}]"]):
        sets = ["train.lr=1e-3", "train.budget={kl: 1.0, data: elements, rows: 4}", "forget.batch=4", *averaging]
        done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--steps", 4, "--json",
                   *(a for s in sets for a in ("--set", s)))  # fmt: skip
        found.append(json.loads(done.out)["result"]["budget"]["kl"])
    assert 0 < found[1] < 0.7 * found[0]


def test_a_step_that_changes_nothing_is_named() -> None:
    t, _ = fitted(1e-30)
    with pytest.raises(RunFailed, match="no length of the first step"):
        list(t.run())


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["train.lr=auto", "train.budget={kl: 0.1}", "train.warmup=3"], "leave warmup and schedule out"),
        (["train.lr=auto", "train.budget={benchmark: elements}"], "auto spends a budget"),
        (["train.lr=auto"], "auto spends a budget"),
    ],
)
def test_what_cannot_be_fitted_is_refused(ilu: Ilu, tiny: Path, sets: list[str], told: str) -> None:
    done = ilu(
        "unlearn", "--method", "grad_ascent", "--model", tiny, *(a for s in sets for a in ("--set", s)), "--dry-run"
    )
    assert done.code == 2 and told in done.err


def test_a_recipe_finds_its_rate_and_says_so(ilu: Ilu, tiny: Path) -> None:
    sets = [
        "train.lr=auto",
        "train.optimizer=sgd",
        "train.budget={kl: 0.01, data: elements, rows: 6}",
        "forget.batch=4",
    ]
    done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--steps", 4, "--json",
               *(a for s in sets for a in ("--set", s)))  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    rows = [json.loads(line) for line in (Path(told["path"]) / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["budget kl"] == pytest.approx(0.01 / 16, rel=0.1)
    assert {row["lr"] for row in rows} == {told["result"]["budget"]["lr"]}
