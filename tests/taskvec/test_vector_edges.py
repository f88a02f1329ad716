"""Task vectors at the edges: a vector that is zero, a rule without its key, shares kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ilu_cli.errors import UnavailableError
from ilu_cli.taskvec.angles import Gram
from ilu_cli.taskvec.arithmetic import combine
from ilu_cli.taskvec.plane import PARALLEL, coordinates


def gram(**vectors: Any) -> Gram:
    v = torch.tensor(list(vectors.values()), dtype=torch.float64)
    return Gram(list(vectors), v @ v.t())


@pytest.mark.parametrize("name", ["linear", "ties", "magnitude", "dare"])
def test_without_a_density_every_rule_is_the_sum_and_linear_has_none(name: str) -> None:
    weight, tau = torch.ones(2, 3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64).view(2, 3)
    assert torch.equal(combine(weight, [tau, tau], [2.0, -0.5], name, None, 0, "w"), 1 + 1.5 * tau)
    assert torch.equal(combine(weight, [tau, tau], [2.0, -0.5], "linear", 0.5, 0, "w"), 1 + 1.5 * tau)


def test_arithmetic_is_in_float64() -> None:
    weight = torch.full((1,), 1.0, dtype=torch.float64)
    tau = torch.full((1,), 1e-12, dtype=torch.float64)
    for name in ("linear", "ties", "magnitude", "dare"):
        found = combine(weight, [tau], [1 / 3], name, 1.0, 0, "w")
        assert found.dtype == torch.float64
        assert found.item() - 1 == pytest.approx(1e-12 / 3, rel=1e-3)


def test_drawing_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    combine(torch.zeros(4, dtype=torch.float64), [torch.ones(4, dtype=torch.float64)], [1.0], "dare", 0.5, 0, "w")
    assert torch.equal(torch.rand(1), expected)


def test_a_zero_vector_spans_no_plane_whichever_it_is() -> None:
    for u, ft in (([0, 0, 0], [1, 2, 0]), ([1, 2, 0], [0, 0, 0]), ([0, 0, 0], [0, 0, 0])):
        with pytest.raises(UnavailableError, match="zero or parallel"):
            coordinates(gram(u=u, ft=ft), "u", "ft", ["u"])


def test_nearly_parallel_is_parallel_below_a_millionth() -> None:
    assert PARALLEL == 1e-6
    for sine, fine in ((1e-5, True), (1e-8, False)):
        g = gram(u=[2.0, 0.0], ft=[3.0, 3.0 * sine])
        if fine:
            ((x, y, _),) = coordinates(g, "u", "ft", ["ft"])
            assert (x, y) == pytest.approx((3, 3e-5), rel=1e-3)
        else:
            with pytest.raises(UnavailableError):
                coordinates(g, "u", "ft", ["ft"])
