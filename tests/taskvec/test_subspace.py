from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_angles import SHAPES, adapter, checkpoint

from ilu_cli.taskvec import subspace
from ilu_cli.taskvec.delta import Adapted, Checkpoint
from ilu_cli.taskvec.stream import Difference
from ilu_cli.taskvec.subspace import by_layer, effective_rank, overlaps, spectrum

NAME = "model.layers.0.mlp.down_proj.weight"


def folder(path: Path, **tensors: Any) -> Any:
    path.mkdir()
    save_file({n: torch.tensor(np.array(t, dtype=np.float64)) for n, t in tensors.items()}, path / "model.safetensors")
    return Checkpoint(path)


def test_shares_and_angles_by_hand(tmp_path: Path) -> None:
    """τ_u = 3·e₁f₁ᵀ + e₂f₂ᵀ; τ has 4 in e₁f₁ᵀ, 2 in e₁f₂ᵀ and 2 in e₃f₃ᵀ."""
    zero = np.zeros((4, 3))
    tau_u, tau = zero.copy(), zero.copy()
    tau_u[0, 0], tau_u[1, 1] = 3, 1
    tau[0, 0], tau[0, 1], tau[2, 2] = 4, 2, 2
    o, u, a = (folder(tmp_path / n, **{NAME: w}) for n, w in (("o", zero), ("u", tau_u), ("a", tau_u + tau)))
    (one,) = overlaps((o, u), (u, a), [NAME], 1, 0)
    assert (one.left, one.right, one.both) == pytest.approx((20 / 24, 16 / 24, 16 / 24))
    assert one.kept == pytest.approx(0.9)
    assert one.chance == pytest.approx((1 / 4, 1 / 3, 1 / 12))
    assert one.angles == pytest.approx([0], abs=1e-5)
    (two,) = overlaps((o, u), (u, a), [NAME], 2, 0)
    assert (two.left, two.right, two.both) == pytest.approx((20 / 24, 20 / 24, 20 / 24))
    assert sorted(two.angles) == pytest.approx([0, 90], abs=1e-5)
    (three,) = overlaps((o, u), (u, a), [NAME], 3, 0)
    assert three.k == 2  # τ_u has no third direction


def test_the_effective_rank_by_hand() -> None:
    """2, 1, 1: p = ½, ¼, ¼ has an entropy of 1½ bits."""
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert effective_rank(torch.tensor([7.0])) == 1
    assert effective_rank(torch.full((5,), 0.3)) == pytest.approx(5)
    assert effective_rank(torch.empty(0)) is None


def test_a_spectrum_is_what_is_above_rounding(tmp_path: Path) -> None:
    o = folder(tmp_path / "o", **{NAME: np.zeros((4, 3))})
    end = folder(tmp_path / "end", **{NAME: np.vstack([np.diag([1.0, 5, 0]), np.zeros(3)])})
    assert spectrum(Difference.of(o.weight(NAME), end.weight(NAME))).tolist() == pytest.approx([5, 1])
    assert spectrum(Difference.of(o.weight(NAME), o.weight(NAME))).tolist() == []
    rng = np.random.default_rng(0)
    weight, step = rng.standard_normal((40, 30)), np.outer(rng.standard_normal(40), rng.standard_normal(30))
    start, before = stored(tmp_path / "start", weight, torch.bfloat16)
    after, now = stored(tmp_path / "after", before + step, torch.bfloat16)
    found = spectrum(Difference.of(start.weight(NAME), after.weight(NAME)))
    assert found.tolist() == pytest.approx([np.linalg.svd(now - before)[1][0]])


@pytest.mark.parametrize("flat", [False, True])
def test_lanczos_agrees_with_a_whole_decomposition_and_is_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    rng = np.random.default_rng(0)
    sharp = 0 if flat else rng.standard_normal((70, 4)) @ np.diag([50, 20, 10, 5]) @ rng.standard_normal((4, 60))
    o, u = np.zeros((70, 60)), sharp + (1 if flat else 1e-3) * rng.standard_normal((70, 60))
    a = u + rng.standard_normal((70, 3)) @ rng.standard_normal((3, 60))
    c = [folder(tmp_path / n, **{NAME: w}) for n, w in zip("oua", (o, u, a))]
    (exact,) = overlaps((c[0], c[1]), (c[1], c[2]), [NAME], 3, 0)
    monkeypatch.setattr(subspace, "WHOLE", 1)
    (first,), (again,) = (overlaps((c[0], c[1]), (c[1], c[2]), [NAME], 3, 0) for _ in range(2))
    assert first == again
    for name in ("left", "right", "both", "kept"):
        assert getattr(first, name) == pytest.approx(getattr(exact, name), rel=1e-9)
    assert first.angles == pytest.approx(exact.angles, abs=1e-5)


def test_what_is_kept_is_a_share_of_unlearning_not_of_fine_tuning(tmp_path: Path) -> None:
    """Two matrices: τ_u of squares 100 + 1 and 2 + 2, of which one direction keeps 100 of 101 and 2 of 4; ‖τ‖² 1, 9."""
    names, zero = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)], np.zeros((3, 3))
    u = [np.diag([10.0, 1, 0]), np.diag([2**0.5, 2**0.5, 0])]
    tau = [np.diag([1.0, 0, 0]), np.diag([0, 0, 3.0])]
    o = folder(tmp_path / "o", **dict.fromkeys(names, zero))
    start = folder(tmp_path / "u", **dict(zip(names, u)))
    end = folder(tmp_path / "a", **{n: x + y for n, x, y in zip(names, u, tau)})
    found = by_layer(overlaps((o, start), (start, end), names, 1, 0))
    assert found["all"].kept == pytest.approx(102 / 105)
    assert (found["layer 0"].kept, found["layer 1"].kept) == pytest.approx((100 / 101, 0.5))
    assert found["all"].left == pytest.approx(1 / 10)  # of ‖τ‖² = 10, the 1 of layer 0
    assert (found["all"].norm, found["all"].norm_u) == pytest.approx((10**0.5, 105**0.5))


def stored(path: Path, weight: np.ndarray, dtype: Any) -> tuple[Checkpoint, np.ndarray]:
    path.mkdir()
    kept = torch.tensor(weight).to(dtype)
    save_file({NAME: kept}, path / "model.safetensors")
    return Checkpoint(path), kept.double().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_that_rounding_made_are_none(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights of size 0.02 whose change has rank 2 in unlearning and 3 in fine-tuning: K = 8 asks for more."""
    rng = np.random.default_rng(0)
    start, kept = stored(tmp_path / "o", 0.02 * rng.standard_normal((96, 64)), dtype)
    low = [rng.standard_normal((96, r)) @ rng.standard_normal((r, 64)) * 0.02 for r in (2, 3)]
    one, after = stored(tmp_path / "u", kept + low[0], dtype)
    two, _ = stored(tmp_path / "a", after + low[1], dtype)
    (found,) = overlaps((start, one), (one, two), [NAME], 8, 0)
    assert (found.k, found.directions, len(found.angles)) == (2, 3, 2)
    exact = np.linalg.svd(np.linalg.svd(low[0])[0][:, :2].T @ np.linalg.svd(low[1])[0][:, :3], compute_uv=False)
    angles = np.degrees(np.arccos(np.clip(exact, 0, 1)))
    assert found.angles == pytest.approx(angles, abs=0.01 if dtype == torch.float32 else 1)
    assert found.kept > (0.999999 if dtype == torch.float32 else 0.999)


def test_rounding_has_the_size_that_is_said(tmp_path: Path) -> None:
    """The largest singular value of what rounding adds, beside what `noise` says of it."""
    rng = np.random.default_rng(1)
    start, kept = stored(tmp_path / "o", rng.standard_normal((200, 120)), torch.bfloat16)
    added = 0.1 * rng.standard_normal((200, 120))
    end, after = stored(tmp_path / "u", kept + added, torch.bfloat16)
    said = subspace.noise(Difference.of(start.weight(NAME), end.weight(NAME)))
    found = np.linalg.norm(after - kept - added, 2)
    assert found < said < 1.3 * found
    same, _ = stored(tmp_path / "s", kept, torch.bfloat16)
    assert subspace.noise(Difference.of(start.weight(NAME), same.weight(NAME))) == 0


def test_a_full_change_keeps_all_its_directions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    start, kept = stored(tmp_path / "o", 0.02 * rng.standard_normal((96, 64)), torch.float32)
    one, after = stored(tmp_path / "u", kept + 1e-4 * rng.standard_normal((96, 64)), torch.float32)
    two, _ = stored(tmp_path / "a", after + 1e-4 * rng.standard_normal((96, 64)), torch.float32)
    (found,) = overlaps((start, one), (one, two), [NAME], 8, 0)
    assert (found.k, found.directions) == (8, 8)


def test_an_adapter_is_decomposed_through_its_factors(tmp_path: Path) -> None:
    o = checkpoint(tmp_path / "o", 0)
    added = adapter(tmp_path / "l", 1, modules=("layers.0.mlp.down_proj",))
    base = Checkpoint(tmp_path / "o")
    checkpoint(tmp_path / "a", 3)
    same = folder(tmp_path / "u", **{n: o[n] + added.get(n, 0) for n in SHAPES})
    far = Checkpoint(tmp_path / "a")
    (low,) = overlaps((base, Adapted(base, tmp_path / "l")), (base, far), sorted(SHAPES), 2, 0)
    (whole,) = overlaps((base, same), (base, far), [NAME], 2, 0)
    assert low.weight == whole.weight == NAME
    assert (low.left, low.right, low.both, low.kept) == pytest.approx((whole.left, whole.right, whole.both, whole.kept))
    assert by_layer([low])["all"].left == pytest.approx(low.left)
