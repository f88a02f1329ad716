"""Tensors of many rows in one block, and a hash of the rows by which they are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ilu_cli.engine.accel import BUCKET, Backend


class Blocks:
    """Tensors [length, ...] of rows whose lengths are known, each a part of one block [Σ lengths, ...]."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.ends = list(lengths), torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.block: Tensor | None = None

    def put(self, row: int, value: Tensor) -> None:
        """Copy a row's tensor to its place, from whatever device; the first one tells type and width."""
        if self.block is None:
            self.block = torch.zeros(self.ends[-1], *value.shape[1:], dtype=value.dtype)
        self.block[self.ends[row] : self.ends[row + 1]] = value

    def join(self, b: Backend) -> None:
        """Put in what the other processes have put to their places, each row by one; a part at a time."""
        if b.world == 1:
            return
        known = [None if self.block is None else (self.block.shape, self.block.dtype)]
        if not (made := [k for k in b.gather(known) if k is not None]):
            return
        self.block = torch.zeros(made[0][0], dtype=made[0][1]) if self.block is None else self.block
        for part in self.block.view(-1).split(BUCKET):
            part.copy_(b.sum(part.clone()))

    def rows(self, block: Tensor) -> list[Tensor]:
        """Each row's part of such a block, as a view."""
        return list(block.split(self.lengths))


def rows_key(rows: Iterable[tuple[Sequence[int], int]]) -> str:
    """A hash of rows of tokens, each with its first target, in their order."""
    digest = hashlib.sha256()
    for ids, start in rows:
        digest.update(json.dumps([list(ids), start]).encode())
    return digest.hexdigest()
