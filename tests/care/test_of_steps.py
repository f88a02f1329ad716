"""What the steps of a training tell."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from conftest import tiny_model

from ilu_cli.care import steps
from ilu_cli.data.encode import Corpus, Encoded
from ilu_cli.engine.accel import backend
from ilu_cli.engine.head import scaled
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.temper import calibrated_nll, compared, looked_at, per_sequence
from ilu_cli.models.logits import LMHead, LogitMap
from ilu_cli.models.parts import parts_of


def series(first: float, last: float, noise: float, n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"step": i + 1, "loss": first + (last - first) * i / (n - 1) + rng.gauss(0, noise)} for i in range(n)]


def test_the_noise_of_a_series_is_not_its_trend() -> None:
    assert steps.noise([1.0, 2.0, 1.0, 2.0]) == pytest.approx(math.sqrt(3 / 6))
    values = [s["loss"] for s in series(5.0, 1.0, 0.3, n=4000)]
    assert steps.noise(values) == pytest.approx(0.3, rel=0.05)


def test_a_loss_that_moves_less_than_the_steps_differ_has_not_moved() -> None:
    assert steps.unmoved("a", series(2.0, 2.0, 0.3))
    assert steps.unmoved("a", series(2.0, 3.0, 0.3))  # nor has one that rises been learned
    assert steps.unmoved("a", series(2.0, 2.0, 0.0))
    assert steps.unmoved("a", series(2.0, 1.0, 0.3)) is None
    assert steps.unmoved("a", series(2.0, 1.99, 0.0)) is None
    assert steps.unmoved("a", series(2.0, 2.0, 0.3, n=9)) is None  # too few steps to say anything


def test_one_unmoved_series_in_forty_is_taken_for_moved() -> None:
    """Two standard errors, one-sided: 2.3 % of series of noise alone."""
    moved = sum(steps.unmoved("a", series(2.0, 2.0, 0.3, seed=s)) is None for s in range(1000))
    assert 10 <= moved <= 45


def test_zeros() -> None:
    def told(rows: list[dict[str, Any]]) -> list[str]:
        return [w.id for w in steps.zeros("m", rows)]

    sound = [{"step": i, "forget": 1.0, "retain": float(i > 0), "grad_norm": 2.0, "lr": 0.0} for i in range(4)]
    assert told(sound) == []
    assert told([r | {"retain": 0.0} for r in sound]) == ["zero-loss"]
    assert told([r | {"grad_norm": 0.0} for r in sound[:2]] + sound[2:]) == ["zero-gradient"]
    assert told([r | {"grad_norm": 0.0} for r in sound[:1]] + sound[1:]) == []
    assert told([]) == []
    lazy = [r | ({"irm": 0.0} if r["step"] % 2 == 0 else {}) for r in sound]
    assert told(lazy) == ["zero-loss"]
    assert told([r | ({"irm": 0.1} if "irm" in r else {}) for r in lazy]) == []


def test_no_weight_that_changed() -> None:
    assert steps.unchanged("m", 0.0)
    assert steps.unchanged("m", 1e-9) is None
    assert steps.unchanged("m", None) is None


def gaps(gap: list[float], nll: list[float]) -> list[dict[str, Any]]:
    rows = []
    for i in range(20):
        noise, share = 0.002 * math.sin(7 * i), i / 19
        rows.append({f"{k}[e]": a + (b - a) * share + noise for k, (a, b) in (("D", gap), ("nll", nll))})
    return rows


def test_d_that_falls_with_the_same_loss_at_the_best_temperature() -> None:
    fallen = gaps([0.5, 0.02], [2.0, 1.8])  # NLL fell as well: re-tempering a bad temperature does that
    same, better = ({"before": 1.80, "after": after, "stderr": 0.02} for after in (1.79, 1.70))
    assert steps.temperature_alone("m", "e", fallen, same)
    assert steps.temperature_alone("m", "e", fallen, better) is None
    assert steps.temperature_alone("m", "e", gaps([0.5, 0.4], [2.0, 2.0]), same) is None  # D did not fall


def binary(margin: float, right: float) -> torch.Tensor:
    """Logits of 1000 tokens between two words, `margin` apart; the share `right` are the likelier word."""
    z = torch.zeros(1000, 2, dtype=torch.float64)
    z[:, 0] = margin
    z[int(1000 * right) :, 0] *= -1
    return z


def losses_of(z: torch.Tensor) -> Any:
    """Their NLL by β, the first word being right, and its derivatives by autograd."""

    def scaled(beta: float) -> tuple[torch.Tensor, ...]:
        b = torch.full((len(z),), beta, dtype=torch.float64, requires_grad=True)
        nll = (b[:, None] * z).logsumexp(-1) - b * z[:, 0]
        (slope,) = torch.autograd.grad(nll.sum(), b, create_graph=True)
        return nll.detach(), slope.detach(), torch.autograd.grad(slope.sum(), b)[0]

    return scaled


def test_the_best_temperature_by_hand() -> None:
    """Right with probability q and margin m: β* solves σ(βm) = q, and the loss there is the entropy of q."""
    q, margin = 0.8, 3.0
    beta, found = calibrated_nll(losses_of(binary(margin, q)))
    assert beta == pytest.approx(math.log(q / (1 - q)) / margin, rel=1e-3)
    entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    assert float(found.mean()) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize(("margin", "right", "best"), [(0.01, 0.9, 4.0), (30.0, 0.6, 0.25)])
def test_a_best_temperature_out_of_reach_is_the_nearest(margin: float, right: float, best: float) -> None:
    z = binary(margin, right)
    beta, found = calibrated_nll(losses_of(z))
    assert beta == pytest.approx(best, rel=2e-3)
    assert float(found.mean()) == pytest.approx(float(losses_of(z)(best)[0].mean()), rel=1e-2)


def test_losses_and_their_derivatives_by_the_temperature_are_those_of_plain_logits() -> None:
    """Against float64 logits and autograd, with a bias and a map f, more rows than are gone over at once."""
    torch.manual_seed(0)
    hidden, weight, bias, y = torch.randn(30, 6), torch.randn(11, 6), torch.randn(11), torch.randint(0, 11, (30,))
    z = (hidden.double() @ weight.double().t() + bias.double()) * 0.7
    right = torch.cat([z.gather(1, y[:, None]), z], dim=1)  # the right word's logit first, for the picked one
    head = LMHead(weight, bias, LogitMap(scale=0.7))
    for beta in (0.5, 1.0, 2.3):
        b = torch.full((30,), beta, dtype=torch.float64, requires_grad=True)
        nll = (b[:, None] * right[:, 1:]).logsumexp(-1) - b * right[:, 0]
        (slope,) = torch.autograd.grad(nll.sum(), b, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), b)
        for ours, theirs in zip(scaled(hidden, head, y, beta), (nll, slope, curvature)):
            assert torch.allclose(ours.double(), theirs.detach(), atol=1e-5)


def test_scaling_moves_d_and_not_the_calibrated_loss_and_learning_moves_both() -> None:
    def d(z: torch.Tensor) -> float:
        p = z.softmax(-1)
        return float((-z[:, 0] + z.logsumexp(-1) + (p * z.log_softmax(-1)).sum(-1)).mean())

    def rows(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return calibrated_nll(losses_of(z))[1].view(10, 100).sum(-1), torch.full((10,), 100.0, dtype=torch.float64)

    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    before = binary(3.0, 0.8)[order]
    cooled, learned = before * math.log(4) / 3, binary(math.log(9), 0.9)[order]
    assert d(before) > 0.4
    assert abs(d(cooled)) < 1e-6
    assert abs(d(learned)) < 1e-6
    scaled, better = compared(rows(before), rows(cooled)), compared(rows(before), rows(learned))
    assert abs(scaled["before"] - scaled["after"]) < 2e-3
    assert better["before"] - better["after"] > 2 * better["stderr"] > 0
    log = gaps([d(before), 0.0], [1.0, 0.5])
    assert steps.temperature_alone("m", "e", log, {**scaled, "stderr": max(scaled["stderr"], 2e-3)})
    assert steps.temperature_alone("m", "e", log, better) is None


def test_what_the_original_costs_is_read_by_a_second_run_and_never_by_another_model() -> None:
    rows = [Encoded([(7 * i + j) % 61 for j in range(3 + i % 5)], 1) for i in range(20)]
    stream = TrainStream("e", [Corpus(rows, 0)], 4, 0)
    one, other = (parts_of(tiny_model(seed=seed)) for seed in (0, 1))
    losses, tokens = per_sequence(stream, one, backend(), "fp32", ["one"])
    assert tokens.sum() == sum(len(e.ids) - 1 for e in looked_at(stream)) and len(tokens) == 16
    assert torch.equal(per_sequence(stream, one, backend(), "fp32")[0], losses)
    again = per_sequence(stream, other, backend(), "fp32", ["one"])  # what was kept of a model of this name
    assert torch.equal(again[0], losses) and torch.equal(again[1], tokens)
    for parts, precision, source in ((other, "fp32", ["other"]), (one, "bf16", ["one"]), (other, "fp32", None)):
        assert not torch.equal(per_sequence(stream, parts, backend(), precision, source)[0], losses)


def test_the_error_of_a_paired_difference_by_hand() -> None:
    """Two sequences of 1 and 3 tokens: d = (1, 1), mean 2/4; residuals 1 − 0.5 and 1 − 1.5; √(2·(0.25+0.25))/4."""
    n = torch.tensor([1.0, 3.0])
    found = compared((torch.tensor([2.0, 4.0]), n), (torch.tensor([1.0, 3.0]), n))
    assert (found["before"], found["after"]) == (1.5, 1.0)
    assert found["stderr"] == pytest.approx(0.25)
