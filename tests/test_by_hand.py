"""Every objective, retain term and regulariser on numbers small enough to be worked out on paper.

Two scored tokens, 0 and 1, under logits (ln 3, 0): p = (3/4, 1/4), NLL = ln 4/3 and ln 4, H = ln 4 − 3/4 ln 3 each.
"""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from ilu_cli import registry
from ilu_cli.data.encode import Batch
from ilu_cli.engine.view import Reference, View
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import Parts
from ilu_cli.objectives.repnoise import mmd

HEAD = torch.nn.Linear(1, 2, bias=False)
HEAD.weight.data = torch.tensor([[1.0], [0.0]])


# Two tokens at 0 in two dimensions: no distance but that to the noise, 2 from 0 and 4 among itself, so b = 2 at 1.
STILL = sum(1 - 2 * b / (b + 2) + b / (b + 4) for b in (0.5, 1.0, 2.0, 4.0, 8.0))


def view(reference: float = log(1 / 16), teacher: float = log(3), norm: float = 2.0, still: bool = False) -> View:
    """Ids (1, 0, 1), the last two scored; hidden states (5, 2, 4) at the layer; the original model as given."""
    scored = torch.tensor([[False, True, True]])
    original = Reference(
        logps=torch.tensor([reference]),
        hidden=torch.tensor([[[9.0], [1.0], [1.0]]]),
        norm=norm,
        final=torch.tensor([[teacher], [teacher]]),
        head=LMHead(HEAD.weight),
        states=torch.tensor([[[[1.0, 1.0], [1.0, 1.0], [-3.0, 4.0]]], [[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]]]),
    )
    batch = Batch(torch.tensor([[1, 0, 1]]), torch.ones_like(scored), scored)
    found = View(Parts(HEAD, torch.nn.ModuleList(), LMHead(HEAD.weight)), batch, 0, 0, original)
    found.__dict__ |= {"final": torch.full((2, 1), log(3)), "hidden": torch.tensor([[[5.0], [2.0], [4.0]]])}
    found.__dict__["states"] = torch.tensor(
        [[[[5.0, 9.0], [1.0, 0.0], [3.0, 4.0]]], [[[9.0, 5.0], [1.0, 0.0], [0.0, 2.0]]]]
    )
    found.__dict__["lens"] = torch.tensor([[log(4 / 3), log(4)], [log(4 / 3), log(4)]])
    found.__dict__["mlp"], original.mlp = found.states, original.states
    if still:
        found.__dict__["states"] = torch.zeros(2, 1, 3, 2)
    found.mean = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    return found


def pair() -> View:
    """log π_θ/π_ref is ln 3 for the forget sequence and −ln 3 for what should be said instead."""
    forget = view()
    forget.chosen = view(reference=log(9 / 16))
    return forget


VALUES = [
    ("objective", "grad_ascent", view, {}, log(3 / 16)),
    ("objective", "grad_diff", view, {}, log(3 / 16)),
    ("objective", "wga", view, {"alpha": 1.0}, -(3 / 4 * log(4 / 3) + 1 / 4 * log(4))),
    ("objective", "satimp", view, {"beta1": 1.0, "beta2": 1.0}, -3 / 16 * log(16 / 3)),
    ("objective", "satimp", view, {"beta1": 1.0, "beta2": 0.0}, -(3 / 4 * log(4 / 3) + 1 / 4 * log(4))),
    ("objective", "ce_u", view, {}, log(4) + log(4 / 3)),
    ("objective", "pdu", view, {}, 2 * (log(3) / 2) ** 2),
    ("objective", "cir", view, {}, 1 / 2 + 7 / 25 + 0 + 2),
    ("objective", "circuit_breakers", view, {}, (2**-0.5 + 7 / 25 + 0 + 1) / 2),
    # layer 0: d to μ 1 and 1/5, to h⁰ 1 − 2^-½ and 1 − 7/25; layer 1: 0 and 1, to h⁰ 2 and 0
    ("objective", "crl", view, {"margin": 0.0}, (2**-0.5 + 0 + 0 + 1) / 2),
    ("objective", "crl", view, {"margin": 1.0}, (1 + 2**-0.5 + 0.48 + 0 + 2) / 2),
    ("objective", "npo", view, {"beta": 1.0}, 2 * log(1 + 3)),
    ("objective", "npo", view, {"beta": 2.0, "reduction": "mean"}, log(1 + 3)),
    ("objective", "simnpo", view, {"beta": 2.0}, log(1 + 3 / 16)),
    ("objective", "simnpo", view, {"beta": 2.0, "delta": log(16)}, log(1 + 3)),
    ("objective", "altpo", pair, {"beta": 1.0}, 2 * log(1 + 9)),
    ("objective", "dpo", pair, {"beta": 1.0}, 2 * log(1 + 9)),
    ("objective", "idk_po", pair, {"beta": 1.0}, 2 * log(1 + 9)),
    ("objective", "undial", view, {"strength": log(3)}, log(16 / 3) / 2 + 0.9 * log(4 / 3) + 0.1 * log(4)),
    ("objective", "repnoise", view, {"alpha": 1.0, "beta": 0.0}, -log(1 + log(16 / 3) / 2)),
    ("objective", "repnoise", lambda: view(still=True), {"alpha": 0.0, "beta": 2.0}, 2 * STILL),
    ("objective", "undo", lambda: view(teacher=0.0), {}, log(4 / 3)),
    ("objective", "rmu", view, {"coefficient": 3.0, "adaptive": False}, 1.0 + 1.0),
    ("objective", "rmu", view, {"coefficient": 1.0, "adaptive": True}, 0.0 + 4.0),
    ("objective", "rmu", lambda: view(norm=0.0), {"coefficient": 1.0, "adaptive": True}, 4.0 + 16.0),
    ("retain", "nll", view, {}, log(16 / 3)),
    ("retain", "kl", lambda: view(teacher=0.0), {}, log(4 / 3)),
    ("retain", "crl", view, {"margin": 0.0, "kl": 0.0}, (0 + 0.52 + 2 + 0) / 2),
    ("retain", "crl", lambda: view(teacher=0.0), {"margin": 0.5, "kl": 2.0}, (0 + 1.02 + 2.5 + 0) / 2 + 2 * log(4 / 3)),
    ("retain", "hidden_norm", view, {}, (1.0 + 6.0 + 2.0 + 1.0) / 2),
    ("retain", "hidden_mse", view, {}, 1.0 + 9.0),
]


@pytest.mark.parametrize(("kind", "name", "make", "keys", "expected"), VALUES)
def test_value_of_a_sequence(kind: str, name: str, make: Any, keys: Any, expected: Any) -> None:
    known = registry.objective if kind == "objective" else registry.retain_term
    (value,) = known[name].obj(make(), **keys)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_gap_of_the_two_tokens_is_half_of_ln_3() -> None:
    """D = Σ (NLL − H) = ln 16/3 − 2 ln 4 + 3/2 ln 3 = ½ ln 3."""
    assert view().gap.item() == pytest.approx(log(3) / 2, rel=1e-5)


def test_the_discrepancy_is_that_of_very_many_draws_of_noise() -> None:
    """The published estimator against noise that is drawn: means of kernels among points, among noise, and across."""
    g = torch.Generator().manual_seed(0)
    x, y = 1.5 * torch.randn(2, 5, 3, generator=g) + 0.5, torch.randn(40000, 3, generator=g)
    share = torch.tensor([[0.2] * 5, [0.5, 0.5, 0.0, 0.0, 0.0]])
    for row, part, found in zip(x, share, mmd(x, share)):
        points = row[part > 0]
        pairs = ((points, points), (y[:2000], y[2000:4000]), (points, y))
        among, noise, across = (torch.cdist(a, b).square() for a, b in pairs)
        spread = (among.mean() + noise.mean() + 2 * across.mean()) / 4
        kernel = [sum((-d / (m * spread)).exp().mean() for m in (0.25, 0.5, 1, 2, 4)) for d in (among, noise, across)]
        assert found.item() == pytest.approx(float(kernel[0] + kernel[1] - 2 * kernel[2]), abs=0.02)
    assert mmd(y[None, :500], torch.full((1, 500), 1 / 500)).item() < 0.02 < mmd(x, share).min()


class Given:
    """Environments whose means, gradients and Hessians are given."""

    def __init__(self, weights: Any, means: Any = (), gradients: Any = (), theta: Any = ()) -> None:
        self.weights, self.means = torch.tensor(weights), torch.tensor(means)
        self._gradients, self._theta, self.added = gradients, theta, list[Any]()

    def of_means(self, statistic: Any, combine: Any, *, halves: Any = False) -> float:
        self.statistic = statistic
        return float(combine(self.means))

    def gradients(self) -> list[Any]:
        return [[torch.tensor(g)] for g in self._gradients]

    def parameters(self) -> list[Any]:
        return [torch.tensor(self._theta)]

    def hessian_times(self, i: Any, v: Any) -> list[Any]:
        return [10.0 * x for x in v]

    def add(self, gradient: Any) -> None:
        self.added.append(gradient[0].tolist())


PENALTIES = [
    ("irm", {}, Given([1.0, 0.5], [1.0, -2.0]), 1 + 0.5 * 4, None),
    ("irm", {"estimator": "cross_halves"}, Given([1.0, 0.5], [[1.0, 2.0], [3.0, -1.0]]), 2 - 1.5, None),
    ("irm", {"variant": "grad_norm"}, Given([2.0], gradients=[[3.0, 4.0]]), 2 * 25, [[120.0, 160.0]]),
    (
        "irm",
        {"variant": "param_scale"},
        Given([1.0], gradients=[[3.0, 4.0]], theta=[1.0, 2.0]),
        11**2,
        [[2 * 11 * 13.0, 2 * 11 * 24.0]],
    ),
    ("env_ce", {}, Given([1.0, 0.5], [1.0, 4.0]), 3, None),
    ("vrex", {}, Given([1.0, 3.0], [1.0, 5.0]), 1 / 4 * 9 + 3 / 4 * 1, None),
    ("grad_match", {}, Given([1.0, 1.0], gradients=[[0.0, 0.0], [2.0, 0.0]]), 1, [[-10.0, 0.0], [10.0, 0.0]]),
]


@pytest.mark.parametrize(("name", "keys", "envs", "expected", "gradient"), PENALTIES)
def test_value_of_a_penalty(name: str, keys: dict[str, Any], envs: Any, expected: Any, gradient: Any) -> None:
    assert registry.regularizer[name].obj(envs, **keys) == pytest.approx(expected)
    if gradient is None:
        assert envs.statistic == ("gap" if name == "irm" else "nll")
    else:
        assert envs.added == [pytest.approx(g) for g in gradient]


def test_nothing_is_left_out() -> None:
    assert {n for k, n, *_ in VALUES if k == "objective"} == set(registry.objective)
    assert {n for k, n, *_ in VALUES if k == "retain"} == set(registry.retain_term)
    assert {n for n, *_ in PENALTIES} == set(registry.regularizer)
