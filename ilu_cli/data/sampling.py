"""Which rows are seen when: a pure function of seed, stream, and step, so there is nothing to checkpoint."""

from __future__ import annotations

import functools
import hashlib
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the random stream of this name."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Sampler:
    """Draws rows without replacement, epoch by epoch, from several datasets taken in turn.

    Item p of the stream is row `order[k]` of dataset `p mod n`, with k = p div n counted through that dataset's
    epochs; each epoch has its own seeded order. Neither processes nor micro-batches change what a step sees.
    """

    def __init__(self, sizes: list[int], seed: int, name: str) -> None:
        self.sizes, self.seed, self.name = sizes, seed, name
        self._order = functools.lru_cache(maxsize=2 * len(sizes))(self._shuffled)

    def _shuffled(self, dataset: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(seed_of(self.seed, self.name, dataset, epoch))
        return rng.permutation(self.sizes[dataset])

    def rows(self, step: int, batch: int) -> list[tuple[int, int]]:
        """The (dataset, row) pairs of one step."""
        found = []
        for p in range(step * batch, (step + 1) * batch):
            k, dataset = divmod(p, len(self.sizes))
            epoch, offset = divmod(k, self.sizes[dataset])
            found.append((dataset, int(self._order(dataset, epoch)[offset])))
        return found


def part_of(items: list[T], part: int, parts: int) -> list[T]:
    """The contiguous share `part` of `parts`; shares differ by at most one item, and may be empty."""
    low, high = part * len(items) // parts, (part + 1) * len(items) // parts
    return items[low:high]
