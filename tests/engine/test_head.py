import math
from typing import Any

import pytest
import torch

from ilu_cli.engine import head, tiles
from ilu_cli.engine.head import distillation, picked_logps, token_moments, token_stats
from ilu_cli.models.logits import LMHead, LogitMap

MAPS = [LogitMap(), LogitMap(0.25), LogitMap(2.0), LogitMap(1.0, 2.0), LogitMap(-3.0, 1.5)]


def logits(hidden: Any, head: Any) -> Any:
    """By the definition, cap · tanh(scale · (h Wᵀ + b) / cap)."""
    u = head.map.scale * (hidden @ head.weight.t() + (0 if head.bias is None else head.bias))
    return u if head.map.cap is None else head.map.cap * torch.tanh(u / head.map.cap)


def naive(hidden: Any, head: Any, targets: Any) -> tuple[Any, Any]:
    logp = logits(hidden, head).log_softmax(-1)
    return -logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_two_tokens_by_hand() -> None:
    """Logits (ln 3, 0): p = (3/4, 1/4), so NLL of token 0 is ln 4/3 and H = ln 4 − 3/4 ln 3."""
    hidden = torch.tensor([[math.log(3.0)]])
    nll, entropy = token_stats(hidden, LMHead(torch.tensor([[1.0], [0.0]])), torch.tensor([0]))
    assert nll.item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)


def test_a_cap_by_hand() -> None:
    """u = (atanh ½, 0) under a cap of 2 ln 3: z = (ln 3, 0), f′ = (1 − ¼, 1); dNLL/du = (¾ − 1, ¼) · f′."""
    hidden, bias = torch.zeros(1, 1), torch.zeros(2, requires_grad=True)
    cap = 2 * math.log(3)
    weight = torch.tensor([[cap * math.atanh(0.5)], [0.0]])
    nll, entropy = token_stats(hidden + 1, LMHead(weight, bias, LogitMap(1.0, cap)), torch.tensor([0]))
    nll.sum().backward()
    assert nll.item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)
    torch.testing.assert_close(bias.grad, torch.tensor([-0.25 * 0.75, 0.25]))


@pytest.mark.parametrize("f", MAPS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tile", [(3, 2), (4, 7), (512, 8192)])
def test_values_and_gradients_are_those_of_autograd(
    float64: None, monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], with_bias: bool, f: Any
) -> None:
    monkeypatch.setattr(tiles, "ROWS", tile[0])
    monkeypatch.setattr(tiles, "TILE", tile[1])
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    bias = torch.randn(7, requires_grad=True) if with_bias else None
    targets, a, b = torch.randint(0, 7, (10,)), torch.randn(10), torch.randn(10)
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    lm = LMHead(weight, bias, f)
    ours, theirs = token_stats(hidden, lm, targets), naive(hidden, lm, targets)
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad((a * n + b * h).sum(), leaves) for n, h in (ours, theirs))
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("f", MAPS)
def test_the_gap_is_the_derivative_by_a_scale_on_the_logits(float64: None, f: Any) -> None:
    """d/dw NLL(w·z) at w = 1 by double backward (the definition of IRMv1), and the gradient of its square."""
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4), torch.randint(0, 6, (9,))
    w = torch.ones((), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(w * logits(hidden, LMHead(weight, map=f)), targets)
    (d,) = torch.autograd.grad(loss, w, create_graph=True)
    (expected,) = torch.autograd.grad(d.square(), hidden)
    nll, entropy = token_stats(hidden, LMHead(weight, map=f), targets)
    ours = (nll - entropy).mean()
    (found,) = torch.autograd.grad(ours.square(), hidden)
    torch.testing.assert_close(ours, d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_large_shift_of_all_logits_changes_nothing_in_bf16() -> None:
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(8, 4), torch.randn(32, 4), torch.randint(0, 32, (8,))
    shifted = torch.cat([hidden, torch.ones(8, 1)], 1), torch.cat([weight, torch.full((32, 1), 64.0)], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = token_stats(hidden, LMHead(weight), targets)
        moved = token_stats(shifted[0], LMHead(shifted[1]), targets)
    for x, y in zip(plain, moved):  # logits near 64 in bf16 are rounded to 1/4 at worst; NLL − H stays in range
        assert x.dtype == y.dtype == torch.float32
        torch.testing.assert_close(x, y, atol=0.3, rtol=0.0)


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("f", MAPS)
def test_distillation_is_that_of_autograd_with_a_teacher_that_has_a_head_of_its_own(
    float64: None, monkeypatch: pytest.MonkeyPatch, f: Any, shift: float
) -> None:
    monkeypatch.setattr(tiles, "CHUNK", 4)
    torch.manual_seed(3)
    hidden, states = torch.randn(10, 5, requires_grad=True), torch.randn(10, 5)
    weight, bias = torch.randn(7, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    student, teacher = LMHead(weight, bias, f), LMHead(torch.randn(7, 5), torch.randn(7), f)
    targets, g = torch.randint(0, 7, (10,)), torch.randn(10)
    zt = logits(states, teacher) - shift * torch.nn.functional.one_hot(targets, 7)
    q, logq = zt.softmax(-1), zt.log_softmax(-1)
    expected = -(q * logits(hidden, student).log_softmax(-1)).sum(-1), -(q * logq).sum(-1)
    ours = distillation(hidden, student, states, teacher, targets, shift)
    for x, y in zip(ours, expected):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad((g * ce).sum(), (hidden, weight, bias)) for ce in (ours[0], expected[0]))
    for x, y in zip(found, wanted):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("f", MAPS)
def test_scores_are_those_of_the_logits(float64: None, monkeypatch: pytest.MonkeyPatch, f: Any) -> None:
    monkeypatch.setattr(tiles, "CHUNK", 4)
    torch.manual_seed(4)
    hidden, targets = torch.randn(10, 5), torch.randint(0, 7, (10,))
    lm = LMHead(torch.randn(7, 5), torch.randn(7), f)
    logp = logits(hidden, lm).log_softmax(-1)
    picked, best = logp[torch.arange(10), targets], logp.argmax(-1) == targets
    found, greedy = picked_logps(hidden, lm, torch.arange(10), targets)
    torch.testing.assert_close(found, picked)
    assert greedy.tolist() == best.tolist()
    mean = (logp.exp() * logp).sum(-1)
    std = (logp.exp() * logp.square()).sum(-1).sub(mean.square()).sqrt()
    torch.testing.assert_close(token_moments(hidden, lm, targets), torch.stack([picked, mean, std, best.double()]))


def test_tokens_of_very_different_logits_do_not_share_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits up to 1 and up to 10⁴ in one tile: taken from one maximum, the smaller ones would all be 0."""
    monkeypatch.setattr(tiles, "TILE", 3)
    torch.manual_seed(6)
    hidden, lm, targets = torch.randn(4, 5), LMHead(torch.randn(7, 5)), torch.tensor([0, 3, 6, 2])
    hidden[1] *= 1e4
    for ours, theirs in zip(token_stats(hidden, lm, targets), naive(hidden, lm, targets)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_margins_and_their_gradient(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain logits, by several chunks, with a bias and a cap."""
    monkeypatch.setattr(tiles, "CHUNK", 3)
    g = torch.Generator().manual_seed(1)
    hidden, weight, bias = (torch.randn(*s, generator=g).requires_grad_() for s in ((7, 4), (11, 4), (11,)))
    z = 2.0 * ((hidden @ weight.t() + bias) / 2.0).tanh()
    expected = z.max(-1).values - z.mean(-1)
    found = head.margins(hidden, LMHead(weight, bias, LogitMap(cap=2.0)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = (hidden, weight, bias)
    want = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), want, rtol=1e-10, atol=1e-12)


def test_tiles_grow_with_an_accelerator_and_stay_small_on_a_cpu() -> None:
    assert tiles.tile_for(None) == (512, 8192)
    assert tiles.chunk_for(None, 50_000) == 256
    assert tiles.tile_for(80 * 10**9) == (4096, 16384)  # 14 bytes each: 0.94 GB, less than a 64th of 80 GB
    assert tiles.tile_for(10**9) == (512, 8192)
    for memory in (2 * 10**9, 10 * 10**9, 80 * 10**9, 192 * 10**9):
        rows, words = tiles.tile_for(memory)
        assert (rows, words) == (512, 8192) or 14 * rows * words <= memory / 64
        assert tiles.chunk_for(memory, 128_000) % 256 == 0
    assert tiles.memory_of(torch.device("cpu")) is None


def test_the_tile_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of a made-up size: 4 × 6 logits at a time, seen in what is cast of the matrix."""
    monkeypatch.setattr(tiles, "ROWS", 2)
    monkeypatch.setattr(tiles, "TILE", 3)
    monkeypatch.setattr(head, "memory_of", lambda _: tiles.SHARE * tiles.HELD * 24)
    torch.manual_seed(7)
    hidden, lm, targets = torch.randn(9, 5), LMHead(torch.randn(14, 5)), torch.randint(0, 14, (9,))
    shapes, plain = list[tuple[int, int]](), head._logits

    def seen(h: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append((len(h), len(w)))
        return plain(h, w, *rest)

    monkeypatch.setattr(head, "_logits", seen)
    for ours, theirs in zip(token_stats(hidden, lm, targets), naive(hidden, lm, targets)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert max(shapes) == tiles.tile_for(tiles.SHARE * tiles.HELD * 24) == (8, 3)
