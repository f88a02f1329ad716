"""Subspaces at the edges: no direction, the same one twice, factors of an adapter, rounding by hand, sums."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_angles import SHAPES, adapter, checkpoint
from test_subspace import NAME, folder, stored

from ilu_cli.taskvec import subspace
from ilu_cli.taskvec.delta import Adapted, Checkpoint
from ilu_cli.taskvec.stream import Difference
from ilu_cli.taskvec.subspace import Overlap, by_layer, overlaps


def of(tmp_path: Path, u: np.ndarray, tau: np.ndarray, k: int) -> Overlap:
    """The overlap of τ with τ_u, from 0."""
    start, middle, end = np.zeros_like(u), u, u + tau
    o, one, two = (folder(tmp_path / n, **{NAME: w}) for n, w in (("o", start), ("u", middle), ("a", end)))
    (found,) = overlaps((o, one), (one, two), [NAME], k, 0)
    return found


def test_no_direction_has_no_share_and_no_angle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = of(tmp_path, rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), 0)
    assert (found.k, found.directions, found.angles) == (0, 0, [])
    assert (found.left, found.right, found.both, found.kept, found.chance) == (0, 0, 0, 0, (0, 0, 0))


@pytest.mark.parametrize("shape", [(12, 10), (40, 64)])
def test_the_same_subspace_has_angles_of_0_whatever_rounding_says(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Cosines of equal subspaces come out above 1 as often as below."""
    rng = np.random.default_rng(0)
    m, n = shape
    u = rng.standard_normal((m, 4)) @ rng.standard_normal((4, n))
    found = of(tmp_path, u, 0.5 * u, 3)
    assert (found.k, found.directions) == (3, 3)
    assert found.angles == pytest.approx([0, 0, 0], abs=1e-4)
    assert found.chance == pytest.approx((3 / m, 3 / n, 9 / (m * n)))
    assert (found.left, found.right, found.both) == pytest.approx([found.kept] * 3)
    assert (found.norm, found.norm_u) == pytest.approx((np.linalg.norm(u) / 2, np.linalg.norm(u)))


@pytest.mark.parametrize("k", [2, 4, 5])
def test_many_of_few_directions_are_decomposed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Lanczos finds fewer than all."""
    monkeypatch.setattr(subspace, "WHOLE", 1)
    u = np.diag([5.0, 4, 3, 2, 1, 0])[:, :5]
    found = of(tmp_path, u, np.ones((6, 5)), k)
    assert found.k == k
    assert found.kept == pytest.approx(sum(i**2 for i in (5, 4, 3, 2, 1)[:k]) / 55)
    assert (found.left, found.both) == pytest.approx((k / 6, k * k / 30))


def test_an_adapter_is_never_decomposed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "o", 0)
    base = Checkpoint(tmp_path / "o")
    added = adapter(tmp_path / "l", 1, modules=("layers.0.mlp.down_proj",))[NAME]
    checkpoint(tmp_path / "a", 3)
    low = Difference.of(base.weight(NAME), Adapted(base, tmp_path / "l").weight(NAME))
    monkeypatch.setattr(subspace, "leading_dense", lambda *_: pytest.fail("the whole matrix was decomposed"))
    (left, s, right), total = subspace.leading(low, 1, 0, NAME)
    u, sizes, vt = np.linalg.svd(added)
    assert total == pytest.approx((sizes**2).sum())
    assert s.tolist() == pytest.approx(sizes[:1])
    assert (left.shape, right.shape) == ((SHAPES[NAME][0], 1), (SHAPES[NAME][1], 1))
    assert abs(float(left[:, 0] @ torch.tensor(u[:, 0]))) == pytest.approx(1)
    assert abs(float(right[:, 0] @ torch.tensor(vt[0]))) == pytest.approx(1)


def test_the_noise_of_six_entries_by_hand(tmp_path: Path) -> None:
    """bfloat16 has 7 more bits: h = 2⁻⁷ in [1, 2) and 2⁻⁸ in [½, 1). What stayed, or is 0, has none."""
    end = np.array([[1.0, 1.5, 0.75], [1.25, 0.5, 0.0]])
    start = np.array([[2.0, 2.0, 2.0], [1.25, 2.0, 2.0]])
    one, two = (stored(tmp_path / n, w, torch.bfloat16)[0] for n, w in (("o", start), ("u", end)))
    large, small = 2.0**-14 / 12, 2.0**-16 / 12
    rows, columns = max(2 * large + small, small), max(large, large + small, small)
    said = subspace.noise(Difference.of(one.weight(NAME), two.weight(NAME)))
    assert said == pytest.approx(math.sqrt(rows) + math.sqrt(columns), rel=1e-12)


def test_matrices_are_summed_by_their_squares() -> None:
    """Squares 1 and 9 of τ, 4 and 1 of τ_u."""
    rows = [
        Overlap("model.layers.0.mlp.up_proj.weight", 2, 0.5, 0.25, 0.125, (0.1, 0.2, 0.3), 0.75, 1.0, 2.0, 3, [5.0]),
        Overlap("model.layers.1.mlp.up_proj.weight", 1, 0.1, 0.05, 0.025, (0.2, 0.4, 0.6), 0.25, 3.0, 1.0, 2, [1.0, 9]),
    ]
    found = by_layer(rows)
    assert list(found) == ["all", "layer 0", "layer 1"]
    assert found["all"].as_dict() == {
        "weight": "all", "k": 2, "left": pytest.approx(1.4 / 10), "right": pytest.approx(0.7 / 10),
        "both": pytest.approx(0.35 / 10), "chance": pytest.approx((1.9 / 10, 3.8 / 10, 5.7 / 10)),
        "kept": pytest.approx(3.25 / 5), "norm": pytest.approx(10**0.5), "norm_u": pytest.approx(5**0.5),
        "directions": 3, "angles": [1.0, 5.0, 9],
    }  # fmt: skip
    for group, row in zip(("layer 0", "layer 1"), rows):
        expected = row.as_dict() | {"weight": group}
        shares = ("left", "right", "both", "chance", "kept", "norm", "norm_u")
        assert found[group].as_dict() == expected | {k: pytest.approx(expected[k]) for k in shares}


def test_factors_of_an_adapter_have_no_noise_and_those_beside_a_changed_base_are_not_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    checkpoint(tmp_path / "other", 1)
    base, other = Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "other")
    adapter(tmp_path / "l", 1, modules=("layers.0.mlp.down_proj",))
    checkpoint(tmp_path / "a", 3)
    low = Difference.of(base.weight(NAME), Adapted(base, tmp_path / "l").weight(NAME))
    assert subspace.noise(low) == 0
    both = Difference.of(base.weight(NAME), Adapted(other, tmp_path / "l").weight(NAME))
    sizes = np.linalg.svd(both.whole().numpy(), compute_uv=False)
    (_, s, _), total = subspace.leading(both, 3, 0, NAME)
    assert s.tolist() == pytest.approx(sizes[:3])
    assert total == pytest.approx((sizes**2).sum())


def test_lanczos_gives_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "WHOLE", 1)
    tau = np.random.default_rng(0).standard_normal((64, 50))
    u, sizes, vt = np.linalg.svd(tau)
    left, s, right = subspace.leading_dense(torch.from_numpy(tau), 3, 0, NAME)
    assert s.tolist() == pytest.approx(sizes[:3])
    assert [abs(float(left[:, i] @ torch.tensor(u[:, i]))) for i in range(3)] == pytest.approx([1, 1, 1])
    assert [abs(float(right[:, i] @ torch.tensor(vt[i]))) for i in range(3)] == pytest.approx([1, 1, 1])


def test_an_attack_that_changes_bytes_and_no_number_has_no_overlap(tmp_path: Path) -> None:
    """0 became −0."""
    u = np.random.default_rng(0).standard_normal((5, 4))
    u[0, 0] = 0.0
    after = u.copy()
    after[0, 0] = -0.0
    o, one, two = (folder(tmp_path / n, **{NAME: w}) for n, w in (("o", np.zeros_like(u)), ("u", u), ("a", after)))
    assert overlaps((o, one), (one, two), [NAME], 2, 0) == []
