"""The fused LM head in other types than the default: products in that of the states, all else in float32 at least."""

from __future__ import annotations

import pytest
import torch
from conftest import present
from torch import Tensor

from ilu_cli.engine import tiles as sizes
from ilu_cli.engine.head import distillation, picked_logps, token_moments, token_stats
from ilu_cli.models.logits import LMHead, LogitMap

CAPPED = LogitMap(1.5, 4.0)


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and chunks."""
    for name, size in (("ROWS", 4), ("TILE", 5), ("CHUNK", 4)):
        monkeypatch.setattr(sizes, name, size)


def drawn(dtype: torch.dtype, weights: torch.dtype) -> tuple[Tensor, LMHead, Tensor, Tensor, LMHead]:
    """Ten states, an LM head for twelve words, targets, and a teacher's states and LM head."""
    torch.manual_seed(0)
    hidden, states = (torch.randn(10, 6).to(dtype) for _ in range(2))
    mine, other = (LMHead(torch.randn(12, 6).to(weights), torch.randn(12).to(weights), CAPPED) for _ in range(2))
    return hidden, mine, torch.randint(0, 12, (10,)), states, other


def logits(hidden: Tensor, lm: LMHead, full: torch.dtype) -> Tensor:
    u = (hidden @ lm.weight.to(hidden.dtype).t()).to(full) + present(lm.bias)
    cap = present(CAPPED.cap)
    return cap * torch.tanh(CAPPED.scale * u / cap)


def found_and_expected(dtype: torch.dtype, weights: torch.dtype, full: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    hidden, lm, targets, states, teacher = drawn(dtype, weights)
    logp, logq = logits(hidden, lm, full).log_softmax(-1), logits(states, teacher, full).log_softmax(-1)
    p, picked = logp.exp(), logp.gather(-1, targets[:, None])[:, 0]
    best, mean = logp.argmax(-1) == targets, (p * logp).sum(-1)
    std = ((p * logp.square()).sum(-1) - mean.square()).sqrt()
    twice = torch.arange(10).repeat_interleave(2)  # two targets for each state
    logps, greedy = picked_logps(hidden, lm, twice, targets[twice])
    return [
        *zip(token_stats(hidden, lm, targets), (-picked, -mean)),
        *zip(
            distillation(hidden, lm, states, teacher, targets),
            (-(logq.exp() * logp).sum(-1), -(logq.exp() * logq).sum(-1)),
        ),
        (logps, picked[twice]),
        (greedy, best[twice]),
        (token_moments(hidden, lm, targets), torch.stack([picked, mean, std, best.to(full)])),
    ]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_states_in_bf16_have_losses_and_scores_in_float32(weights: torch.dtype) -> None:
    for found, expected in found_and_expected(torch.bfloat16, weights, torch.float32):
        assert found.dtype in (torch.float32, torch.bool)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_float64_keeps_its_digits_whatever_the_default_type_is() -> None:
    assert torch.get_default_dtype() == torch.float32
    for found, expected in found_and_expected(torch.float64, torch.float64, torch.float64):
        assert found.dtype in (torch.float64, torch.bool)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of", ["stats", "distillation"])
@pytest.mark.parametrize(
    ("dtype", "weights", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.bfloat16, torch.float32, 0.02),
        (torch.bfloat16, torch.bfloat16, 0.02),
    ],
)
def test_gradients_are_in_the_type_of_what_they_are_taken_by(
    of: str, dtype: torch.dtype, weights: torch.dtype, tolerance: float
) -> None:
    hidden, lm, targets, states, teacher = drawn(dtype, weights)
    full = torch.promote_types(dtype, torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, lm.weight, present(lm.bias))]
    logp = logits(hidden, lm, full).log_softmax(-1)
    if of == "stats":
        nll, entropy = token_stats(hidden, lm, targets)
        ours = nll.sum() + 0.5 * entropy.sum()
        theirs = -logp.gather(-1, targets[:, None]).sum() - 0.5 * (logp.exp() * logp).sum()
    else:
        q = logits(states, teacher, full).softmax(-1).detach()
        ours, theirs = distillation(hidden, lm, states, teacher, targets)[0].sum(), -(q * logp).sum()
    for found, expected, leaf in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), leaves):
        assert found.dtype == leaf.dtype
        assert float((found - expected).double().norm() / expected.double().norm()) < tolerance


@pytest.mark.parametrize("of", ["stats", "distillation"])
def test_under_autocast_products_are_in_bf16_and_everything_else_in_float32(of: str) -> None:
    """Both kinds of product have factors rounded to bf16; p, by which gradients are weighted, is not rounded before."""
    torch.manual_seed(0)
    hidden, weight, targets = 3 * torch.randn(64, 8), 3 * torch.randn(12, 8), torch.randint(0, 12, (64,))
    states, teacher = torch.randn(64, 8), LMHead(torch.randn(12, 8))
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if of == "stats":
            values = token_stats(hidden, LMHead(weight), targets)[0]
        else:
            values = distillation(hidden, LMHead(weight), states, teacher, targets)[0]
    found = torch.autograd.grad(values.sum(), leaves)  # as a trainer does, outside
    h, w = hidden.detach().bfloat16(), weight.detach().bfloat16()
    logp = (h @ w.t()).float().log_softmax(-1)
    q = torch.nn.functional.one_hot(targets, 12).float()
    if of == "distillation":
        q = (states.bfloat16() @ teacher.weight.bfloat16().t()).float().softmax(-1)
    torch.testing.assert_close(values.detach(), -(q * logp).sum(-1), rtol=1e-5, atol=1e-5)
    du = (logp.exp() - q).bfloat16()
    for ours, theirs in zip(found, (du.double() @ w.double(), du.double().t() @ h.double())):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 2e-3 * theirs.norm()
