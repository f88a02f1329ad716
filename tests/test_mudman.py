"""MUDMAN on two numbers, by hand: the adversary, what is kept, the mask, the length."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Ilu
from torch import Tensor, nn

from ilu_cli.defences.mudman import Mudman
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Gradients, Term
from ilu_cli.recipe.specs import TrainSpec


class Two(Gradients):
    """The weights x and y. A term's `values` gives its loss, of them alone; the NLL of the forget data is x² + y."""

    def __init__(self, x: float, y: float) -> None:
        self.x, self.y = nn.Parameter(torch.tensor([x])), nn.Parameter(torch.tensor([y]))
        parts: Any = None
        super().__init__(parts, {"x": self.x, "y": self.y}, TrainSpec(packing=False), 0, backend())

    def accumulate(self, term: Term, *, step: int | None = None, precision: str | None = None) -> Tensor:
        loss = (self.x**2 + self.y if term.name == "attacker" else term.values(None)).sum()  # type: ignore[arg-type]
        (term.weight * loss).backward()
        return loss.detach()


def step(two: Two, defence: Mudman) -> tuple[float, float]:
    """The gradient that is left of the forget loss −x² + 3y, where the retain loss is x + 2xy."""
    stream: Any = None
    forget = Term("forget", stream, lambda _: -(two.x**2) + 3 * two.y, "token")
    retain = Term("retain", stream, lambda _: two.x + 2 * two.x * two.y, "token", weight=0.0)
    two.take()
    with torch.enable_grad():
        defence.gradient(two, forget, retain, lambda: two.accumulate(forget))
    two.step += 1
    found = [0.0 if p.grad is None else float(p.grad) for p in two.params]
    return found[0], found[1]


def test_three_steps_by_hand() -> None:
    two, defence = Two(1.0, 0.5), Mudman(attacker_lr=0.1, every=2, decay=0.5, norm=None)
    # W = (1, .5): ∇retain = (1 + 2y, 2x) = (2, 2), r = (1, 1). A = W − .1·(2x, 1) = (.8, .4); ∇forget(A) = (−1.6, 3).
    assert step(two, defence) == pytest.approx((0.0, 3.0))
    assert [float(a) for a in defence.adversary] == pytest.approx([0.8, 0.4])
    assert (two.x.item(), two.y.item()) == (1.0, 0.5)
    with torch.no_grad():  # a step of W, which A does not follow
        two.x.fill_(-1.0)
        two.y.fill_(-2.0)
    # ∇retain = (−3, −2), r = (1, 1)/2 + (−3, −2)/2 = (−1, −.5). A = (.8, .4) − .1·(1.6, 1) = (.64, .3); ∇ = (−1.28, 3).
    assert step(two, defence) == pytest.approx((-1.28, 0.0))
    assert [float(r) for r in defence.kept] == pytest.approx([-1.0, -0.5])
    # The second step is over: A begins at W = (−1, −2) again, → (−.8, −2.1); ∇ = (1.6, 3), r = (−2, −1.25).
    assert step(two, defence) == pytest.approx((0.0, 0.0))
    assert [float(a) for a in defence.adversary] == pytest.approx([-0.8, -2.1])


def test_what_is_left_has_the_length_that_is_asked_for() -> None:
    two = Two(-1.0, 0.5)  # ∇retain = (2, −2); A = (−.8, .4), ∇forget(A) = (1.6, 3): x alone is left
    assert step(two, Mudman(attacker_lr=0.1, norm=0.5)) == pytest.approx((0.5, 0.0))
    two = Two(-1.0, 0.5)
    defence = Mudman(attacker_lr=0.1)
    assert step(two, defence) == pytest.approx((1.0, 0.0))
    assert defence.log["forget gradient left"] == pytest.approx(1.6 / math.hypot(1.6, 3))
    assert defence.log["attacker nll"] == pytest.approx(1.5)


def test_it_goes_on_where_it_stopped() -> None:
    one, other, kept = Two(1.0, 0.5), Two(1.0, 0.5), Mudman(attacker_lr=0.1)
    step(one, kept)
    fresh = Mudman(attacker_lr=0.1)
    fresh.load(kept.state())
    other.step = 1
    assert step(other, fresh) == step(one, kept)


def test_without_retain_data_it_is_refused(ilu: Ilu) -> None:
    done = ilu("unlearn", "--method", "npo", "--dry-run", "--defence", "mudman", "--set", "retain=null")
    assert done.code == 2 and "no retain term" in done.err
