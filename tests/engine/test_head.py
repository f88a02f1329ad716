import math

import pytest
import torch

from ilu_cli.engine import head
from ilu_cli.engine.head import token_stats


def naive(hidden, weight, targets, bias=None):
    z = hidden @ weight.t() + (0 if bias is None else bias)
    logp = z.log_softmax(-1)
    return -logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_two_tokens_by_hand():
    """Logits (ln 3, 0): p = (3/4, 1/4), so NLL of token 0 is ln 4/3 and H = ln 4 − 3/4 ln 3."""
    hidden = torch.tensor([[math.log(3.0)]])
    nll, entropy = token_stats(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
    assert nll.item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tile", [(3, 2), (4, 7), (512, 8192)])
def test_values_and_gradients_are_those_of_autograd(float64, monkeypatch, tile, with_bias):
    monkeypatch.setattr(head, "ROWS", tile[0])
    monkeypatch.setattr(head, "TILE", tile[1])
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    bias = torch.randn(7, requires_grad=True) if with_bias else None
    targets, a, b = torch.randint(0, 7, (10,)), torch.randn(10), torch.randn(10)
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    ours, theirs = token_stats(hidden, weight, targets, bias), naive(hidden, weight, targets, bias)
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad((a * n + b * h).sum(), leaves) for n, h in (ours, theirs))
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_the_gap_is_the_derivative_by_a_scale_on_the_logits(float64):
    """d/dw NLL(w·z) at w = 1 by double backward (the definition of IRMv1), and the gradient of its square."""
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4), torch.randint(0, 6, (9,))
    w = torch.ones((), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(w * (hidden @ weight.t()), targets)
    (d,) = torch.autograd.grad(loss, w, create_graph=True)
    (expected,) = torch.autograd.grad(d.square(), hidden)
    nll, entropy = token_stats(hidden, weight, targets)
    ours = (nll - entropy).mean()
    (found,) = torch.autograd.grad(ours.square(), hidden)
    torch.testing.assert_close(ours, d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_large_shift_of_all_logits_changes_nothing_in_bf16():
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(8, 4), torch.randn(32, 4), torch.randint(0, 32, (8,))
    shifted = torch.cat([hidden, torch.ones(8, 1)], 1), torch.cat([weight, torch.full((32, 1), 64.0)], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, moved = token_stats(hidden, weight, targets), token_stats(*shifted, targets)
    for x, y in zip(plain, moved):  # logits near 64 in bf16 are rounded to 1/4 at worst; NLL − H stays in range
        assert x.dtype == y.dtype == torch.float32
        torch.testing.assert_close(x, y, atol=0.3, rtol=0.0)
