"""The optimisers by their own formulas, and that a run goes on with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import items_of, stream, tiny_model, trainer

from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.optimizers import forget_moments
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.errors import UnavailableError

OPTIMIZERS = ("adamw", "sgd", "momentum", "adafactor", "muon")
LR = 1e-2


def made(optimizer: str, **keys: object) -> Trainer:
    term = Term("loss", stream(items_of([6, 9, 7, 5]), batch=2), lambda view: view.nll, "token")
    return trainer(tiny_model(), [term], [], optimizer=optimizer, lr=LR, steps=4, **keys)


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in t.params.items()}


def moved(t: Trainer) -> dict[str, torch.Tensor]:
    """What a step changes."""
    before = weights(t)
    next(t.run())
    return {name: p - before[name] for name, p in weights(t).items()}


def gradients(t: Trainer) -> dict[str, torch.Tensor]:
    t.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in t.params.items()}


def test_momentum_adds_nine_tenths_of_the_step_before() -> None:
    t = made("momentum")
    first = gradients(t)
    for name, d in moved(t).items():
        torch.testing.assert_close(d, -LR * first[name], rtol=1e-3, atol=1e-7)
    second = gradients(t)
    for name, d in moved(t).items():
        torch.testing.assert_close(d, -LR * (second[name] + 0.9 * first[name]), rtol=1e-3, atol=1e-7)


def turned(g: torch.Tensor) -> torch.Tensor:
    """Five steps of Newton and Schulz with Muon's coefficients, which bring all singular values towards 1."""
    x: torch.Tensor = g / g.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_turns_matrices_of_layers_and_adamw_steps_the_rest() -> None:
    t = made("muon")
    first = gradients(t)
    for name, d in moved(t).items():
        if ".layers." in name and d.ndim == 2:
            expected = -LR * 0.2 * max(d.shape) ** 0.5 * turned(first[name])
            assert torch.cosine_similarity(d.flatten(), expected.flatten(), dim=0) > 0.95, name  # torch has bf16 there
            assert (d.norm() / expected.norm()).item() == pytest.approx(1, abs=0.1), name
        elif "norm" in name:  # a first step of Adam is lr in each weight
            torch.testing.assert_close(d.abs(), torch.full_like(d, LR), rtol=1e-2, atol=0)


def test_adafactor_steps_by_a_share_of_the_weights_own_size() -> None:
    for name, d in moved(made("adafactor")).items():
        if "norm" in name:  # of ones: the first step of a vector is lr · 1 · sign of the gradient
            torch.testing.assert_close(d.abs(), torch.full_like(d, LR), rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_on_is_not_stopping(optimizer: str, tmp_path: Path) -> None:
    whole = made(optimizer)
    logs = [log.losses["loss"] for log in whole.run()]
    first = made(optimizer)
    steps = first.run()
    next(steps), next(steps)
    save_state(first, tmp_path / "state")
    second = made(optimizer)
    assert load_state(second, tmp_path / "state") == 2
    assert [log.losses["loss"] for log in second.run()] == logs[2:]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(second).values()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_learning_rate_of_a_step_is_the_schedules(optimizer: str) -> None:
    t = made(optimizer, warmup=2, schedule="linear")
    for expected in (LR / 2, LR):
        next(t.run())
        assert {group["lr"] for group in t.optimizer.param_groups} == {expected}


def test_moments_are_forgotten_by_both_parts_of_muon() -> None:
    t = made("muon")
    next(t.run())
    saved = t.optimizer.state_dict()["both"]
    assert all(part["state"] for part in saved)
    forget_moments(t.optimizer)
    assert not any(part["state"] for part in t.optimizer.state_dict()["both"])


def test_a_torch_without_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.optim.Muon")
    with pytest.raises(UnavailableError, match="muon is not in torch"):
        made("muon")
