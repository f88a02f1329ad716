"""Micro-batches of several terms that the decoder runs as one: weights are cast and gradients added once, not twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ilu_cli.engine.view import View


class Joined:
    """The rows of several views [ΣB, T], run on first use; each view takes its own of what comes out."""

    def __init__(self, views: Sequence[View]) -> None:
        sizes = [v.batch.ids.shape for v in views]
        length = max(t for _, t in sizes)
        self.parts = views[0].parts
        self.ids, self.mask = (
            torch.cat([pad(x, (0, length - x.shape[1])) for x in each])
            for each in ([v.batch.ids for v in views], [v.batch.mask for v in views])
        )
        self.split = [b for b, _ in sizes]
        self.known: dict[tuple[Any, ...], Sequence[Tensor]] = {}

    def of(self, n: int, length: int, what: str, *at: Any) -> Tensor:
        """[B, T, D] of the n-th view, whose rows have `length` tokens with their padding: what `Parts.what` gives."""
        if (key := (what, *at)) not in self.known:
            self.known[key] = getattr(self.parts, what)(*at, self.ids, self.mask).split(self.split)
        return self.known[key][n][:, :length]


def micro_batches(terms: Sequence[Iterator[View]]) -> Iterator[list[tuple[int, View]]]:
    """What several terms see, a micro-batch of each at a time, with its term's number; their rows are run together."""
    for each in itertools.zip_longest(*terms):
        views = {n: view for n, view in enumerate(each) if view is not None}
        rows = Joined(list(views.values())) if len(views) > 1 else None
        yield [(n, replace(v, joined=(rows, i)) if rows else v) for i, (n, v) in enumerate(views.items())]
