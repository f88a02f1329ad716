"""What an environment costs at the best temperature: what is left of its loss when D is 0 by scaling alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from ilu_cli.data.encode import collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.exact import exact
from ilu_cli.engine.head import scaled_nll
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View
from ilu_cli.models.parts import Parts

ROWS = 16  # sequences that are looked at, the same before and after
OCTAVES, POINTS, REFINED = 2.0, 9, 3  # β from 2⁻² to 2²; points of a grid; grids, each about the best of the last


class Calibrated(TypedDict):
    """Mean NLL per token at the best temperature, before and after, and the standard error of the difference."""

    before: float
    after: float
    stderr: float


@torch.no_grad()
def states(stream: TrainStream, parts: Parts, b: Backend, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first sequences of a stream the states [N, D], the scored tokens [N], and the sequence of each [N]."""
    keys = list(dict.fromkeys(k for step in range(ROWS) for k in stream.keys(step)))[:ROWS]
    found: list[tuple[Tensor, Tensor]] = []
    with b.autocast(precision):
        for key in keys:
            view = View(parts, collate([stream.item(key)]).to(b.device), stream.seed)
            found.append((view.final.detach().clone(), view.targets))
    sizes = torch.tensor([len(y) for _, y in found])
    return (
        torch.cat([h for h, _ in found]),
        torch.cat([y for _, y in found]),
        torch.arange(len(sizes)).repeat_interleave(sizes),
    )


def calibrated_nll(losses: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    """β* and the losses [N] there.

    Args:
        losses: maps β [G] to the NLL of every token with all logits times β, [G, N]. Its mean is convex in β, so the
            grid about the best point of a coarser one holds the minimum.
    """
    centre, reach = 0.0, OCTAVES
    for _ in range(REFINED):
        grid = centre + reach * torch.linspace(-1, 1, POINTS, dtype=torch.float64)
        found = losses(grid.exp2())
        best = int(exact(found).mean(-1).argmin())
        centre, reach = float(grid[best]), 2 * reach / (POINTS - 1)
    return 2.0**centre, found[best]


def per_sequence(stream: TrainStream, parts: Parts, b: Backend, precision: str) -> tuple[Tensor, Tensor]:
    """Summed NLL at the best temperature and tokens of each sequence, [B] each; no forward pass more than one."""
    hidden, targets, row = states(stream, parts, b, precision)
    _, found = calibrated_nll(lambda betas: scaled_nll(hidden, parts.head, targets, betas))
    count = int(row.max()) + 1
    losses = torch.zeros(count, dtype=torch.float64).index_add(0, row, exact(found).cpu())
    return losses, torch.bincount(row, minlength=count).double()


def compared(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Calibrated:
    """Two measurements of the same sequences, [B] each.

    The mean per token is the ratio Σ loss / Σ tokens, and the error of the difference of two such ratios over the same
    sequences, by the delta method, √(B/(B−1) Σ (d_b − d̄ n_b)²) / Σ n with d_b a sequence's difference.
    """
    (first, tokens), (last, _) = before, after
    total, n = tokens.sum(), len(tokens)
    d = first - last
    error = ((d - d.sum() / total * tokens).square().sum() * n / max(1, n - 1)).sqrt() / total
    return {"before": float(first.sum() / total), "after": float(last.sum() / total), "stderr": float(error)}
