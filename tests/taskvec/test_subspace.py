import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_angles import SHAPES, adapter, checkpoint

from ilu_cli.taskvec import subspace
from ilu_cli.taskvec.delta import Adapted, Checkpoint
from ilu_cli.taskvec.subspace import by_layer, overlaps

NAME = "model.layers.0.mlp.down_proj.weight"


def folder(path, **tensors):
    path.mkdir()
    save_file({n: torch.tensor(np.array(t, dtype=np.float64)) for n, t in tensors.items()}, path / "model.safetensors")
    return Checkpoint(path)


def test_shares_and_angles_by_hand(tmp_path):
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


def test_randomised_agrees_with_exact_and_is_repeatable(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sharp = rng.standard_normal((40, 4)) @ np.diag([50, 20, 10, 5]) @ rng.standard_normal((4, 30))
    o, u = np.zeros((40, 30)), sharp + 1e-3 * rng.standard_normal((40, 30))
    a = u + rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30))
    c = [folder(tmp_path / n, **{NAME: w}) for n, w in zip("oua", (o, u, a))]
    (exact,) = overlaps((c[0], c[1]), (c[1], c[2]), [NAME], 3, 0)
    monkeypatch.setattr(subspace, "EXACT", 1)
    (first,), (again,) = (overlaps((c[0], c[1]), (c[1], c[2]), [NAME], 3, 0) for _ in range(2))
    assert exact.exact and not first.exact
    assert first == again
    assert (first.left, first.right, first.both) == pytest.approx((exact.left, exact.right, exact.both), rel=1e-6)
    assert first.angles == pytest.approx(exact.angles, abs=1e-3)


def test_an_adapter_is_decomposed_through_its_factors(tmp_path):
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
