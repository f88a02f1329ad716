from typing import Any

import numpy as np
import pytest
import torch

from ilu_cli.errors import UnavailableError
from ilu_cli.taskvec.angles import Gram
from ilu_cli.taskvec.plane import coordinates


def gram(**vectors: Any) -> Any:
    v = torch.tensor(np.array(list(vectors.values())), dtype=torch.float64)
    return Gram(list(vectors), v @ v.t())


def test_coordinates_by_hand() -> None:
    """u along the first axis, ft at 45 degrees to it, a point with a third of its squared norm outside."""
    g = gram(u=[2, 0, 0], ft=[3, 3, 0], o=[0, 0, 0], p=[1, -1, 1])
    (x, y, inside), zero, end, u = coordinates(g, "u", "ft", ["p", "o", "ft", "u"])
    assert (x, y, inside) == pytest.approx((1, -1, 2 / 3))
    assert zero == (0, 0, None)
    assert end == pytest.approx((3, 3, 1))
    assert u == pytest.approx((2, 0, 1))


def test_coordinates_are_a_projection() -> None:
    rng = np.random.default_rng(0)
    u, ft, p, q = rng.standard_normal((4, 50))
    basis, _ = np.linalg.qr(np.stack([u, ft], 1))
    found = coordinates(gram(u=u, ft=ft, p=p, q=q), "u", "ft", ["p", "q"])
    for (x, y, inside), v in zip(found, (p, q)):
        flat = basis.T @ v
        assert np.hypot(x, y) == pytest.approx(np.linalg.norm(flat))
        assert inside == pytest.approx((flat @ flat) / (v @ v))
    (px, py, _), (qx, qy, _) = found
    assert np.hypot(px - qx, py - qy) == pytest.approx(np.linalg.norm(basis.T @ (p - q)))  # distances too


@pytest.mark.parametrize("ft", [[4, 0, 0], [0, 0, 0], [-1, 0, 0]])
def test_parallel_vectors_span_no_plane(ft: list[int]) -> None:
    with pytest.raises(UnavailableError, match="no plane"):
        coordinates(gram(u=[2, 0, 0], ft=ft), "u", "ft", ["u"])
