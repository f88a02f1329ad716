"""How much of one task vector lies in the leading singular directions of another, one weight matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ilu_cli.data.sampling import seed_of
from ilu_cli.taskvec.angles import layer_of
from ilu_cli.taskvec.delta import Checkpoint
from ilu_cli.taskvec.stream import Difference

EXACT = 1024  # the smaller side up to which singular vectors are computed exactly
SWEEPS = 4  # power iterations of the randomised decomposition

Svd = tuple[Tensor, Tensor, Tensor]


@dataclass
class Overlap:
    """Shares of ‖τ‖² of one weight matrix, τ = τ_u→ft, in the span of the first k singular vectors U, V of τ_u.

    left = ‖Uᵀτ‖²/‖τ‖², right = ‖τV‖²/‖τ‖², both = ‖UᵀτV‖²/‖τ‖²; what a random τ would give is k/m, k/n and k²/(mn).
    `angles`: the principal angles, in degrees, between the spans of the first k left singular vectors of τ_u and τ.
    `kept`: the share of ‖τ_u‖² in its own first k directions.
    """

    weight: str
    k: int
    left: float
    right: float
    both: float
    chance: tuple[float, float, float]
    kept: float
    norm: float
    angles: list[float]
    exact: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def overlaps(
    first: tuple[Checkpoint, Checkpoint], second: tuple[Checkpoint, Checkpoint], names: list[str], k: int, seed: int
) -> list[Overlap]:
    """The overlaps of τ = `second` with τ_u = `first`, both (start, end), for every matrix that neither left alone."""
    found = []
    for name in names:
        u, ft = (Difference.of(start.weight(name), end.weight(name)) for start, end in (first, second))
        shape = first[0].shape(name)
        if len(shape) != 2 or not (u.dense or u.low_rank) or not (ft.dense or ft.low_rank):
            continue
        tau = ft.whole()
        if float(tau.norm()) == 0 or (u.dense and float(u.whole().norm()) == 0):
            continue
        found.append(overlap(name, u, tau, k, seed))
    return found


def overlap(name: str, u: Difference, tau: Tensor, k: int, seed: int) -> Overlap:
    """See `Overlap`; a matrix with fewer than k directions gives all it has."""
    m, n = tau.shape
    k = min(k, m, n)
    (left, s, right), total, exact = leading(u, k, seed, name)
    own = leading_dense(tau, k, seed, name + " attacked")[0]
    k = int((s > s[0] * max(m, n) * torch.finfo(s.dtype).eps).sum())  # directions that are there
    left, s, right = left[:, :k], s[:k], right[:, :k]
    norm = float(tau.norm() ** 2)
    inside = left.t() @ tau
    cosines = torch.linalg.svdvals(left.t() @ own[:, :k]).clamp(0, 1)
    return Overlap(
        name, k,
        left=float(inside.norm() ** 2) / norm,
        right=float((tau @ right).norm() ** 2) / norm,
        both=float((inside @ right).norm() ** 2) / norm,
        chance=(k / m, k / n, k * k / (m * n)),
        kept=float((s**2).sum()) / total,
        norm=math.sqrt(norm),
        angles=[math.degrees(math.acos(c)) for c in cosines.tolist()],
        exact=exact,
    )  # fmt: skip


def leading(d: Difference, k: int, seed: int, name: str) -> tuple[Svd, float, bool]:
    """The first k singular triples, ‖·‖², and whether they are exact. An adapter is decomposed through its factors."""
    if d.dense or d.low_rank is None:
        tau = d.whole()
        (*triple,) = leading_dense(tau, k, seed, name)
        return tuple(triple), float(tau.norm() ** 2), min(tau.shape) <= EXACT  # type: ignore[return-value]
    (q1, r1), (q2, r2) = torch.linalg.qr(d.low_rank[0]), torch.linalg.qr(d.low_rank[1].t())
    u, s, vt = torch.linalg.svd(r1 @ r2.t(), full_matrices=False)
    return (q1 @ u[:, :k], s[:k], q2 @ vt[:k].t()), float((s**2).sum()), True


def leading_dense(tau: Tensor, k: int, seed: int, name: str) -> Svd:
    """The first k singular triples: exact up to `EXACT` on the smaller side, else randomised, seeded by the name."""
    if min(tau.shape) <= EXACT:
        u, s, vt = torch.linalg.svd(tau, full_matrices=False)
        return u[:, :k], s[:k], vt[:k].t()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, name))
        u, s, v = torch.svd_lowrank(tau, q=min(2 * k + 8, *tau.shape), niter=SWEEPS)
    return u[:, :k], s[:k], v[:, :k]


def by_layer(found: list[Overlap]) -> dict[str, Overlap]:
    """Over all matrices and by layer: shares of the summed squared norms (chance likewise), and all angles."""
    groups: dict[str, list[Overlap]] = {}
    for o in found:
        for group in ("all", layer_of(o.weight)):
            groups.setdefault(group, []).append(o)
    return {group: _summed(group, rows) for group, rows in groups.items()}


def _summed(group: str, rows: list[Overlap]) -> Overlap:
    weights = [o.norm**2 for o in rows]

    def mean(of: Callable[[Overlap], float]) -> float:
        return sum(w * of(o) for w, o in zip(weights, rows)) / sum(weights)

    return Overlap(
        group,
        max(o.k for o in rows),
        left=mean(lambda o: o.left),
        right=mean(lambda o: o.right),
        both=mean(lambda o: o.both),
        chance=(mean(lambda o: o.chance[0]), mean(lambda o: o.chance[1]), mean(lambda o: o.chance[2])),
        kept=mean(lambda o: o.kept),
        norm=math.sqrt(sum(weights)),
        angles=sorted(a for o in rows for a in o.angles),
        exact=all(o.exact for o in rows),
    )
