"""KL from the start without the logits of the start, against all logits; and where it may not be taken so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import items_of, stream, tiny_model, trainer

from ilu_cli.engine import tiles
from ilu_cli.engine.budget import Budget
from ilu_cli.engine.divergence import AtStart, KLFromStart, logsumexp
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.view import View
from ilu_cli.models.logits import LMHead, LogitMap


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_that_of_all_logits(float64: None, monkeypatch: pytest.MonkeyPatch, scale: float, biased: bool) -> None:
    for name, value in (("CHUNK", 3), ("ROWS", 4), ("TILE", 3)):
        monkeypatch.setattr(tiles, name, value)
    torch.manual_seed(1)
    start, now, weight = torch.randn(10, 5), torch.randn(10, 5), torch.randn(7, 5)
    bias = torch.randn(7) if biased else torch.zeros(7)
    head = LMHead(weight, bias if biased else None, LogitMap(scale))
    logq, logp = ((scale * (h @ weight.T + bias)).log_softmax(-1) for h in (start, now))
    said = AtStart.of(start, head)
    torch.testing.assert_close(said.kl(now, head), (logq.exp() * (logq - logp)).sum(-1), rtol=1e-10, atol=1e-12)
    assert torch.equal(said.kl(start, head), torch.zeros(10))
    logits = scale * (now @ weight.T + bias)
    torch.testing.assert_close(logsumexp(now, head), logits.logsumexp(-1), rtol=1e-12, atol=1e-12)


def test_a_small_one_keeps_its_digits() -> None:
    torch.manual_seed(2)
    start, weight = 3 * torch.randn(40, 16), torch.randn(500, 16)
    now, head = start + 1e-2 * torch.randn(40, 16), LMHead(weight)
    logq, logp = ((h.double() @ weight.double().T).log_softmax(-1) for h in (start, now))
    found = AtStart.of(start, head).kl(now, head).mean()
    assert float(found) == pytest.approx(float((logq.exp() * (logq - logp)).sum(-1).mean()), rel=1e-2)


@pytest.mark.parametrize("trained", [True, False])
def test_a_budget_is_the_same_whether_or_not_the_head_is_trained(
    monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    """`kl` itself is asked where the head is trained, and nowhere else."""
    t = trainer(tiny_model(), [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")], [])
    t.grads.parts.head.weight.requires_grad_(trained)
    budget = Budget.of(stream(items_of([9, 7, 6], seed=5), name="budget"), 9.0, t.grads)
    values: Any = budget.term.values
    asked: list[bool] = []
    plain: Callable[[View], torch.Tensor] = values.kl

    def ask(view: View) -> torch.Tensor:
        asked.append(True)
        return plain(view)

    values.kl = ask
    with torch.no_grad():
        for name, p in t.params.items():
            if "layers" in name:
                p.mul_(1.02)
    found = budget._measure(t.grads)
    assert bool(asked) is trained
    budget.term.values = plain
    assert found == pytest.approx(budget._measure(t.grads), rel=1e-4) and found > 1e-3


def test_a_head_that_caps_its_logits_is_left_to_kl() -> None:
    t = trainer(tiny_model(), [Term("x", stream(items_of([5, 8])), lambda v: -v.nll, "token")], [])
    t.grads.parts.head.weight.requires_grad_(False)
    object.__setattr__(t.grads.parts.head, "map", LogitMap(1.0, 5.0))
    budget = Budget.of(stream(items_of([9, 7]), name="budget"), 9.0, t.grads)
    budget._measure(t.grads)
    values: Any = budget.term.values
    assert isinstance(values, KLFromStart) and not values.said
