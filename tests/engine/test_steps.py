"""The search for a step of finite differences: which steps are tried, where it ends, and what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ilu_cli.engine.gradients import dot
from ilu_cli.engine.hessian import add_product, agreeing


def searched(of: Callable[[float], list[float]], step: float = 1.0) -> tuple[list[float], list[float], float]:
    """The steps that were tried, the vector that was chosen, and its error."""
    tried = []

    def estimate(h: float) -> list[torch.Tensor]:
        tried.append(h)
        return [torch.tensor([x], dtype=torch.float64) for x in of(h)]

    found, error = agreeing(estimate, step)
    return tried, [x.item() for x in found], error


def test_it_falls_by_quarters_until_two_agree_to_a_thousandth() -> None:
    """3 + 4h² beside 4: gaps ‖Δ‖/‖now‖ of 4(16 − 1)/16ᵏ over about 5, the first below 10⁻³ at h = 4⁻⁴ after 4⁻³."""
    tried, found, error = searched(lambda h: [3 + 4 * h * h, 4.0])
    assert tried == [4.0**-k for k in range(5)]
    assert found == [3 + 4 * 4.0**-8, 4]
    gap = 4 * (4.0**-6 - 4.0**-8)
    assert error == pytest.approx(gap / math.hypot(*found))
    assert searched(lambda h: [3 + 4 * h * h, 4.0], 0.25)[0] == [0.25 * 4.0**-k for k in range(4)]


def test_it_ends_where_two_agree_less_than_the_two_before() -> None:
    """Gaps 4/1004 and 5/1009: the first pair is the better one, and agrees to better than a hundredth."""
    values = iter([1000.0, 1004.0, 1009.0])
    tried, found, error = searched(lambda h: [next(values)])
    assert (tried, found) == ([1, 0.25, 0.0625], [1004])
    assert error == pytest.approx(4 / 1004)


def test_where_falling_does_not_serve_it_rises_too_and_takes_the_better() -> None:
    """Down: gaps 1/3 and then more; up from the first again: 1/11 and then more."""
    values = iter([10.0, 15.0, 30.0, 11.0, 20.0])
    tried, found, error = searched(lambda h: [next(values)])
    assert tried == [1, 0.25, 0.0625, 4, 16]
    assert found == [11] and error == pytest.approx(1 / 11)
    values = iter([10.0, 11.0, 30.0, 15.0, 40.0])
    tried, found, error = searched(lambda h: [next(values)])
    assert (tried, found) == ([1, 0.25, 0.0625, 4, 16], [11])
    assert error == pytest.approx(1 / 11)


def test_seven_more_steps_are_tried_in_each_direction() -> None:
    """Gaps that shrink for ever, but slowly: 1/2, 1/3, 1/4, …"""
    count = iter(range(1, 100))
    tried, found, error = searched(lambda h: [float(next(count))])
    assert tried == [4.0**-k for k in range(8)] + [4.0**k for k in range(1, 8)]
    # down: 1 … 8, the last gap 1/8; up, from 1 again: 9 … 15, gaps 8/9, 1/10, …, 1/15
    assert found == [15] and error == pytest.approx(1 / 15)


def test_nothing_agrees_with_nothing_and_what_is_no_number_agrees_with_nothing() -> None:
    assert searched(lambda h: [0.0]) == ([1, 0.25], [0], 0)
    tried, found, error = searched(lambda h: [math.nan])
    assert (tried, error) == ([1, 0.25, 4], math.inf)
    assert math.isnan(found[0])


def test_inner_products_are_summed_in_float64() -> None:
    a = [torch.tensor([1.0, 2.0]), torch.tensor([[3e8]])]
    b = [torch.tensor([4.0, 5.0]), torch.tensor([[1.0]])]
    assert dot(a, b) == 300_000_014


def test_a_weight_that_the_loss_does_not_know_has_no_product() -> None:
    """Of x³ the second derivative is 6x, of 2y it is 0, and z has none."""
    x, y, z = (torch.nn.Parameter(torch.tensor([v])) for v in (3.0, 1.0, 1.0))
    add_product((x**3 + 2 * y).sum(), [x, y, z], [torch.tensor([2.0])] * 3)
    assert x.grad is not None and x.grad.item() == 6 * 3 * 2
    assert y.grad is None or y.grad.item() == 0
    assert z.grad is None
