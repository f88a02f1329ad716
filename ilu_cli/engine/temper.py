"""What an environment costs at the best temperature: what is left of its loss when D is 0 by scaling alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.blocks import rows_key
from ilu_cli.engine.exact import exact
from ilu_cli.engine.head import scaled
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View
from ilu_cli.models.kept import Tensors, kept
from ilu_cli.models.parts import Parts

ROWS, TOGETHER = 16, 8  # sequences that are looked at, the same before and after, and how many at once
LEAST, MOST = 0.25, 4.0  # of β
CLOSE, PASSES = 1e-3, 20  # the search ends where Newton's next step is so small a share of β, or after so many


class Calibrated(TypedDict):
    """Mean NLL per token at the best temperature, before and after, and the standard error of the difference."""

    before: float
    after: float
    stderr: float


def looked_at(stream: TrainStream) -> list[Encoded]:
    """The first sequences of a stream, the shortest first."""
    keys = list(dict.fromkeys(k for step in range(ROWS) for k in stream.keys(step)))[:ROWS]
    return sorted((stream.item(k) for k in keys), key=lambda e: len(e.ids))


@torch.no_grad()
def states(items: list[Encoded], seed: int, parts: Parts, b: Backend, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of some sequences the states [N, D], the scored tokens [N], and the sequence of each [N]."""
    found: list[tuple[Tensor, Tensor]] = []
    with b.autocast(precision):
        for i in range(0, len(items), TOGETHER):
            view = View(parts, collate(items[i : i + TOGETHER]).to(b.device), seed)
            found.append((view.final, view.targets))
    sizes = torch.tensor([e.targets for e in items])
    return (
        torch.cat([h for h, _ in found]),
        torch.cat([y for _, y in found]),
        torch.arange(len(sizes)).repeat_interleave(sizes),
    )


def calibrated_nll(scaled: Callable[[float], tuple[Tensor, Tensor, Tensor]]) -> tuple[float, Tensor]:
    """β* and the losses [N] there, by Newton's method from β = 1, kept within what is known to hold the minimum.

    Args:
        scaled: maps β to the NLL of every token with all logits times β and its two derivatives by β, [N] each. The
            mean is convex in β, so the sign of its slope tells on which side the minimum is.
    """
    low, high, beta = LEAST, MOST, 1.0
    for _ in range(PASSES):
        losses, *derivatives = scaled(beta)
        slope, curvature = (float(exact(d).mean()) for d in derivatives)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else LEAST if slope > 0 else MOST
        if abs(min(max(step, LEAST), MOST) - beta) <= CLOSE * beta:
            return beta, losses
        beta = step if low < step < high else (low * high) ** 0.5
    return beta, losses


def per_sequence(
    stream: TrainStream, parts: Parts, b: Backend, precision: str, source: Any = None
) -> tuple[Tensor, Tensor]:
    """Summed NLL at the best temperature and tokens of each sequence, [B] each; no forward pass more than one.

    Args:
        source: what tells the model, as JSON, if it should be kept on disk (`ilu_cli.models.kept`).
    """
    items = looked_at(stream)

    def compute() -> Tensors:
        hidden, targets, row = states(items, stream.seed, parts, b, precision)
        _, found = calibrated_nll(lambda beta: scaled(hidden, parts.head, targets, beta))
        losses = torch.zeros(len(items), dtype=torch.float64).index_add(0, row, exact(found).cpu())
        return {"losses": losses, "tokens": torch.bincount(row, minlength=len(items)).double()}

    if source is not None:
        source = ["temperature", source, precision, rows_key((e.ids, e.start) for e in items)]
    told = kept(source, compute)
    return told["losses"], told["tokens"]


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
