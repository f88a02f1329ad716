"""Inner products of differences of checkpoints, in float64, in one pass over the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ilu_cli.taskvec.delta import Checkpoint, Weight
from ilu_cli.taskvec.stored import Stored, side_by_side

BLOCK = 1 << 17  # elements of a vector that are in float64 at a time: they stay in the processor's cache
PIECE = 1 << 22  # elements that one thread takes at a time

Array = np.ndarray[Any, np.dtype[np.float64]]
LowRank = tuple[Tensor, Tensor]  # left [m, r], right [r, n], in float64


@dataclass
class Difference:
    """θ_end − θ_start of one weight. Stored parts that are the same bytes cancel, and are not read."""

    stored: tuple[Stored, Stored] | None  # end, start
    low_rank: LowRank | None

    @classmethod
    def of(cls, start: Weight, end: Weight) -> Difference:
        terms = [(1.0, f) for f in end.added if f not in start.added]
        terms += [(-1.0, f) for f in start.added if f not in end.added]
        low_rank = None
        if terms:
            lefts, rights = zip(*(f.matrices() for _, f in terms))
            signed = [sign * left for (sign, _), left in zip(terms, lefts)]
            low_rank = (torch.cat(signed, dim=1), torch.cat(rights))
        return cls(None if start.stored == end.stored else (end.stored, start.stored), low_rank)

    @property
    def dense(self) -> bool:
        """Whether stored tensors are part of it; without, it is a product of two factors."""
        return self.stored is not None

    def whole(self) -> Tensor:
        """All of it, in float64. Only for a difference that is not zero."""
        parts = [self.stored[0].tensor().double() - self.stored[1].tensor().double()] if self.stored else []
        parts += [self.low_rank[0] @ self.low_rank[1]] if self.low_rank else []
        return torch.stack(parts).sum(0)


def products(
    checkpoints: list[Checkpoint], vectors: list[tuple[int, int]], names: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, G [k, k]) for each weight: G_ij = ⟨v_i, v_j⟩ of the vectors v = θ_end − θ_start, (start, end) ↦ v.

    Every stored number is widened to float64 before it is subtracted or multiplied. The sum does not depend on the
    number of threads. Differences that are only adapters are never multiplied out:
    ⟨B₁A₁, B₂A₂⟩ = tr((B₂ᵀB₁)(A₁A₂ᵀ)), and against a dense D as a sum over blocks of rows R, ⟨B_R, D_R Aᵀ⟩.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:  # no library starts threads inside ours
        work = []
        for name in names:
            weights = [c.weight(name) for c in checkpoints]
            found = [Difference.of(weights[start], weights[end]) for start, end in vectors]
            pieces = _pieces(weights[0].stored.shape, any(d.low_rank for d in found))
            futures = [pool.submit(_partial, found, *p) for p in pieces if any(d.dense for d in found)]
            work.append((name, _low_rank_products(found), futures))
        for name, total, futures in work:
            for future in futures:
                total = total + future.result()
            yield name, total


def _pieces(shape: tuple[int, ...], rows_matter: bool) -> Iterator[tuple[int, int, int]]:
    """(first row, last row, columns) of the pieces of a tensor, which is flat unless an adapter needs its rows."""
    numel = int(np.prod(shape))
    columns = shape[1] if rows_matter else 1
    step = max(1, PIECE // columns)
    for row in range(0, numel // columns, step):
        yield row, min(row + step, numel // columns), columns


def _low_rank_products(found: list[Difference]) -> Tensor:
    """Inner products of those differences that have no dense part, through r × r matrices."""
    total = torch.zeros(len(found), len(found), dtype=torch.float64)
    pure = [(i, d.low_rank) for i, d in enumerate(found) if d.low_rank and not d.dense]
    for i, (b1, a1) in pure:
        for j, (b2, a2) in pure:
            if j <= i:
                total[i, j] = total[j, i] = ((b2.t() @ b1) * (a2 @ a1.t())).sum()
    return total


def _partial(found: list[Difference], first: int, last: int, columns: int) -> Tensor:
    """The part of the inner products with a dense difference that rows `first` to `last` contribute."""
    dense = [i for i, d in enumerate(found) if d.dense]
    pure = [(i, d.low_rank) for i, d in enumerate(found) if d.low_rank and not d.dense]
    total = torch.zeros(len(found), len(found), dtype=torch.float64)
    square = np.zeros((len(dense), len(dense)))
    for row, v in _blocks([found[i] for i in dense], first, last, columns):
        for i in range(len(dense)):
            for j in range(i + 1):  # a few long rows: a matrix product of this shape is slower than its entries
                square[i, j] += np.vdot(v[i], v[j])
        for j, (b, a) in pure:
            rows = torch.from_numpy(v).view(len(dense), -1, columns)
            total[dense, j] += ((rows @ a.t()) * b[row : row + rows.shape[1]]).sum((1, 2))
    for j, _ in pure:
        total[j, dense] = total[dense, j]
    total[torch.tensor(dense)[:, None], torch.tensor(dense)] = torch.from_numpy(square + np.tril(square, -1).T)
    return total


def _blocks(dense: list[Difference], first: int, last: int, columns: int) -> Iterator[tuple[int, Array]]:
    """The rows `first` to `last` of dense differences, some at a time: the first of them, and [len(dense), entries]."""
    ends = [d.stored for d in dense if d.stored]
    needed = list(dict.fromkeys(s for pair in ends for s in pair))
    at = {s: i for i, s in enumerate(needed)}
    rows = max(1, BLOCK // columns)
    block = np.empty((len(dense), min(rows, last - first) * columns))
    with side_by_side(needed, first * columns, block.shape[1]) as piece:
        for row in range(first, last, rows):
            n = min(rows, last - row)
            v, wide = block[:, : n * columns], piece(n * columns)
            for i, (d, (end, start)) in enumerate(zip(dense, ends)):
                np.subtract(wide[at[end]], wide[at[start]], out=v[i])
                if d.low_rank:
                    v[i] += (d.low_rank[0][row : row + n] @ d.low_rank[1]).reshape(-1).numpy()
            yield row, v
