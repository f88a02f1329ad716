"""How much of one task vector lies in the leading singular directions of another, one weight matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ilu_cli.data.sampling import seed_of
from ilu_cli.taskvec.angles import layer_of
from ilu_cli.taskvec.delta import Checkpoint
from ilu_cli.taskvec.stream import Difference

WHOLE = 1024  # the smaller side up to which all singular vectors are computed

Svd = tuple[Tensor, Tensor, Tensor]


@dataclass
class Overlap:
    """Shares of ‖τ‖² of one weight matrix, τ = τ_u→ft, in the span of the first k singular vectors U, V of τ_u.

    left = ‖Uᵀτ‖²/‖τ‖², right = ‖τV‖²/‖τ‖², both = ‖UᵀτV‖²/‖τ‖²; what a random τ would give is k/m, k/n and k²/(mn).
    k is at most the number of directions that τ_u has above its rounding. `angles`: the principal angles, in degrees,
    between the spans of the first left singular vectors of τ_u and of τ, which has `directions` of them.
    `kept`: the share of ‖τ_u‖² in its own first k directions; `norm` is ‖τ‖, `norm_u` ‖τ_u‖.
    """

    weight: str
    k: int
    left: float
    right: float
    both: float
    chance: tuple[float, float, float]
    kept: float
    norm: float
    norm_u: float
    directions: int
    angles: list[float]

    def as_dict(self) -> dict[str, object]:
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
        found.append(overlap(name, u, ft, k, seed))
    return [o for o in found if o is not None]


def overlap(name: str, u: Difference, ft: Difference, k: int, seed: int) -> Overlap | None:
    """See `Overlap`; a matrix gives as many of k directions as it has above its rounding (`noise`). None of nothing."""
    tau = ft.whole()
    m, n = tau.shape
    (left, s, right), total = leading(u, k, seed, name)
    (own, sizes, _), _ = leading(ft, k, seed, name + " attacked")
    left, right, own = (
        left[:, : (k := _above(s, noise(u), m, n))],
        right[:, :k],
        own[:, : _above(sizes, noise(ft), m, n)],
    )
    norm = float(tau.norm() ** 2)
    if not norm or not total:
        return None
    inside = left.t() @ tau
    cosines = torch.linalg.svdvals(left.t() @ own).clamp(0, 1) if k and own.shape[1] else torch.empty(0)
    return Overlap(
        name, k,
        left=float(inside.norm() ** 2) / norm,
        right=float((tau @ right).norm() ** 2) / norm,
        both=float((inside @ right).norm() ** 2) / norm,
        chance=(k / m, k / n, k * k / (m * n)),
        kept=float((s[:k] ** 2).sum()) / total,
        norm=math.sqrt(norm),
        norm_u=math.sqrt(total),
        directions=own.shape[1],
        angles=[math.degrees(math.acos(c)) for c in cosines.tolist()],
    )  # fmt: skip


def _above(sizes: Tensor, noise: float, m: int, n: int) -> int:
    """How many singular values, the largest first, are more than rounding: of the computation, or of what is stored."""
    if not len(sizes):
        return 0
    return int((sizes > max(float(sizes[0]) * max(m, n) * torch.finfo(sizes.dtype).eps, noise)).sum())


def noise(d: Difference) -> float:
    """The largest singular value that rounding alone gives to τ = θ_end − θ_start, [m, n].

    What training did is stored to the next number of the weights' type: each entry that moved gets an error, uniform
    within half of the spacing h around θ_end, of variance h²/12. The norm of a matrix of independent entries is at most
    about the root of the largest sum of variances of a row plus that of a column (Bandeira and van Handel, arXiv
    1408.6185). A change of lower rank than K has directions of this size beyond its own, which mean nothing. Factors of
    an adapter are not rounded so.
    """
    if d.stored is None:
        return 0.0
    end, start = (stored.tensor().double() for stored in d.stored)
    spacing = torch.finfo(d.stored[0].dtype).eps * torch.ldexp(torch.ones_like(end), torch.frexp(end).exponent - 1)
    variance = torch.where((end != start) & (end != 0), spacing**2 / 12, 0)
    return sum(math.sqrt(float(variance.sum(side).max())) for side in (0, 1))


def spectrum(d: Difference) -> Tensor:
    """All singular values above rounding (`noise`), the largest first, in float64."""
    if not (d.dense or d.low_rank):
        return torch.empty(0, dtype=torch.float64)
    tau = d.whole()
    sizes: Tensor = torch.linalg.svdvals(tau)
    return sizes[: _above(sizes, noise(d), *tau.shape)]


def effective_rank(sizes: Tensor) -> float | None:
    """exp(−Σ p log p), p = σ / Σσ, of singular values [R] above zero; None if there are none.

    Roy and Vetterli, EUSIPCO 2007: from 1, of a matrix of rank one, to R if all are the same.
    """
    p = sizes / sizes.sum()
    return math.exp(-float((p * p.log()).sum())) if len(p) else None


def leading(d: Difference, k: int, seed: int, name: str) -> tuple[Svd, float]:
    """The first k singular triples, fewer if there are not so many, and ‖·‖². An adapter's through its factors."""
    if d.dense or d.low_rank is None:
        tau = d.whole()
        return leading_dense(tau, k, seed, name), float(tau.norm() ** 2)
    (q1, r1), (q2, r2) = torch.linalg.qr(d.low_rank[0]), torch.linalg.qr(d.low_rank[1].t())
    u, s, vt = torch.linalg.svd(r1 @ r2.t(), full_matrices=False)
    return (q1 @ u[:, :k], s[:k], q2 @ vt[:k].t()), float((s**2).sum())


def leading_dense(tau: Tensor, k: int, seed: int, name: str) -> Svd:
    """The first k singular triples: from all of them up to `WHOLE` on the smaller side, else by Lanczos to convergence.

    A few sweeps of a randomised decomposition do not do: on a flat spectrum (Gaussian, 1536 × 1200, k = 8, 24 columns,
    4 sweeps) it finds 93 % of the squared length and directions whose mean squared cosine with the true ones is 0.35.
    ARPACK's Lanczos, from a start that the name seeds, finds them to 1e-14. A 4096 × 4096 matrix takes half a minute.
    """
    if min(tau.shape) <= WHOLE or 4 * k > min(tau.shape):
        u, s, vt = torch.linalg.svd(tau, full_matrices=False)
        return u[:, :k], s[:k], vt[:k].t()
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(seed_of(seed, name)).standard_normal(min(tau.shape))
    found = svds(tau.numpy(), k=k, ncv=max(2 * k + 1, 40), v0=start)
    order = np.argsort(-found[1])
    u, s, v = (torch.from_numpy(np.ascontiguousarray(x[..., order])) for x in (found[0], found[1], found[2].T))
    return u, s, v


def by_layer(found: list[Overlap]) -> dict[str, Overlap]:
    """Over all matrices and by layer: shares of the summed squared norms (chance likewise), and all angles."""
    groups: dict[str, list[Overlap]] = {}
    for o in found:
        for group in ("all", layer_of(o.weight)):
            groups.setdefault(group, []).append(o)
    return {group: _summed(group, rows) for group, rows in groups.items()}


def _summed(group: str, rows: list[Overlap]) -> Overlap:
    """What is a share of ‖τ‖² is weighted by it; `kept` is one of ‖τ_u‖²."""

    def mean(of: Callable[[Overlap], float], norm: Callable[[Overlap], float] = lambda o: o.norm) -> float:
        return sum(norm(o) ** 2 * of(o) for o in rows) / sum(norm(o) ** 2 for o in rows)

    return Overlap(
        group,
        max(o.k for o in rows),
        left=mean(lambda o: o.left),
        right=mean(lambda o: o.right),
        both=mean(lambda o: o.both),
        chance=(mean(lambda o: o.chance[0]), mean(lambda o: o.chance[1]), mean(lambda o: o.chance[2])),
        kept=mean(lambda o: o.kept, lambda o: o.norm_u),
        norm=math.sqrt(sum(o.norm**2 for o in rows)),
        norm_u=math.sqrt(sum(o.norm_u**2 for o in rows)),
        directions=max(o.directions for o in rows),
        angles=sorted(a for o in rows for a in o.angles),
    )
