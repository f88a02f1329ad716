"""The loop: what it logs, that it resumes to the same bits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import items_of, present, stream, tiny_model, trainer

from ilu_cli.engine.gradients import Term
from ilu_cli.engine.job import drive
from ilu_cli.engine.loop import Trainer, learning_rate
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import RunFailed, UnavailableError
from ilu_cli.recipe.dual import DualSpec
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.runs.store import Store


def nll_term(seed: int = 0) -> Term:
    return Term("loss", stream(items_of([6, 9, 5, 8, 7, 6]), batch=4, seed=seed), lambda view: view.nll, "token")


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in t.params.items()}


def train(run: Any, steps: int, stop: int | None = None, save_every: int = 2, **spec: Any) -> Any:
    t = trainer(tiny_model(), [nll_term()], [], steps=steps, lr=1e-2, save_every=save_every, **spec)
    for done in drive(t, run, Reporter(), "test"):
        if done == stop:
            break
    return t


def test_training_learns(tmp_path: Path) -> None:
    run = Store(tmp_path).create("unlearn", "x")
    train(run, 30)
    rows = (run.path / "metrics.jsonl").read_text().splitlines()
    losses = [float(__import__("json").loads(r)["loss"]) for r in rows]
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, schedule: str) -> None:
    store = Store(tmp_path)
    whole = train(store.create("unlearn", "whole"), 7, schedule=schedule, warmup=2)
    broken = store.create("unlearn", "broken")
    train(broken, 7, stop=5, schedule=schedule, warmup=2)  # the newest state is that of step 4
    resumed = train(broken, 7, schedule=schedule, warmup=2)
    for (name, a), b in zip(weights(whole).items(), weights(resumed).values()):
        assert torch.equal(a, b), name
    assert len((broken.path / "metrics.jsonl").read_text().splitlines()) == 7


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run = Store(tmp_path).create("unlearn", "x")
    train(run, 4, stop=3)
    t = trainer(tiny_model(), [nll_term()], [], steps=4)
    t.params = {"other": next(iter(t.params.values()))}
    with pytest.raises(UnavailableError, match="does not belong"):
        next(drive(t, run, Reporter(), "test"))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    t = trainer(tiny_model(), [nll_term()], [], steps=3)
    before = weights(t)
    t.terms[0].values = lambda view: view.nll * float("inf")
    with pytest.raises(RunFailed, match="step 1: loss is not finite"):
        next(t.run())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(t).values()))


def test_clipping_limits_the_gradient() -> None:
    free = next(trainer(tiny_model(), [nll_term()], [], steps=1).run())
    t = trainer(tiny_model(), [nll_term()], [], steps=1, max_grad_norm=free.grad_norm / 10)
    steps = []
    assert isinstance(t.optimizer, torch.optim.Optimizer)
    t.optimizer.register_step_pre_hook(
        lambda *_: steps.append(torch.cat([present(p.grad).flatten() for p in t.params.values()]))
    )
    next(t.run())
    assert steps[0].norm().item() == pytest.approx(free.grad_norm / 10, rel=1e-4)


def test_learning_rates_by_hand() -> None:
    spec = TrainSpec(steps=10, lr=1.0, warmup=2, schedule="linear")
    assert [learning_rate(spec, s) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate(TrainSpec(steps=10, lr=1.0, schedule="cosine"), 5) == pytest.approx(0.5)


def test_accumulation_takes_the_same_step() -> None:
    found = []
    for accumulation in (1, 3):
        t = trainer(tiny_model(), [nll_term()], [], steps=3, lr=1e-2, accumulation=accumulation)
        logs = list(t.run())
        found.append((weights(t), [log.losses["loss"] for log in logs]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    for a, b in zip(found[0][0].values(), found[1][0].values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weights_move_under_bf16_autocast_at_small_learning_rates() -> None:
    """The masters are float32, so that an update of 1e-6 is not rounded away."""
    t = trainer(tiny_model(), [nll_term()], [], steps=1, lr=1e-6, precision="bf16")
    before = weights(t)
    next(t.run())
    changed = [(before[n] != p).float().mean().item() for n, p in t.params.items() if n != "model.embed_tokens.weight"]
    assert min(changed) > 0.9


def bounded(run: Any, stop: int | None = None, **dual: Any) -> Trainer:
    """Flattening of logits against an NLL whose weight is moved by its limit."""
    rows = items_of([6, 9, 5, 8, 7, 6])
    flat = Term("forget", stream(rows, batch=3), lambda view: view.per_sequence(view.margins.square()), "token")
    retain = Term("retain", stream(rows, batch=4, name="retain"), lambda view: view.nll, "token", 1.0)
    retain.dual = DualSpec(**({"limit": 3.5, "lr": 2.0} | dual))
    t = trainer(tiny_model(), [flat, retain], [], steps=6, lr=1e-2, save_every=2)
    for done in drive(t, run, Reporter(), "test"):
        if done == stop:
            break
    return t


def logged(run: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_bound_moves_the_weight_of_its_term(tmp_path: Path) -> None:
    run = Store(tmp_path).create("unlearn", "x")
    t = bounded(run, warmup=2)
    weight = 1.0
    for step, row in enumerate(logged(run)):
        assert row["retain weight"] == pytest.approx(weight)
        weight = weight if step < 2 else max(0.0, weight + 2.0 * (row["retain"] - 3.5))
    assert t.terms[1].weight == pytest.approx(weight)
    assert weight != 1.0


def test_a_weight_does_not_fall_below_zero(tmp_path: Path) -> None:
    run = Store(tmp_path).create("unlearn", "x")
    assert bounded(run, limit=50.0).terms[1].weight == 0.0
    assert [row["retain weight"] for row in logged(run)] == [1.0, *[0.0] * 5]


def test_a_moved_weight_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole, broken = bounded(store.create("unlearn", "whole")), store.create("unlearn", "broken")
    bounded(broken, stop=5)  # the newest state is that of step 4
    resumed = bounded(broken)
    assert resumed.terms[1].weight == whole.terms[1].weight
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values()))


def test_a_state_from_before_weights_moved_is_read(tmp_path: Path) -> None:
    run = Store(tmp_path).create("unlearn", "x")
    train(run, 4, stop=3)
    for path in run.state.glob("step-*.pt"):
        saved = torch.load(path, weights_only=True)
        del saved["weights"]
        torch.save(saved, path)
        path.with_suffix(".json").unlink()
    (run.state / "made_from.json").unlink(missing_ok=True)
    assert train(run, 4).step == 4
