"""A stream: encoded datasets, a sampler over them, and their share for each process and micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ilu_cli.data.encode import Corpus, Encoded
from ilu_cli.data.sampling import Sampler, part_of

if TYPE_CHECKING:
    from ilu_cli.engine.accel import Backend

RowKey = tuple[int, int]


@dataclass
class TrainStream:
    """What one term is fed. `batch` counts sequences per step over all processes and micro-batches.

    `chosen`, row for row, holds what should be said instead; it has the same name and seed, and so the same order.
    """

    name: str
    corpora: list[Corpus]
    batch: int
    seed: int
    chosen: TrainStream | None = None
    whole: ClassVar = True

    def __post_init__(self) -> None:
        self.sampler = Sampler([len(c.items) for c in self.corpora], self.seed, self.name)

    @property
    def read(self) -> list[Corpus]:
        """All that is read: the datasets, and what should be said instead."""
        return [*self.corpora, *(self.chosen.corpora if self.chosen else ())]

    def item(self, key: RowKey) -> Encoded:
        """The encoded row of a key, (corpus, place in it)."""
        return self.corpora[key[0]].items[key[1]]

    def keys(self, step: int) -> list[RowKey]:
        """All rows of a step, the same on every process."""
        return self.sampler.rows(step, self.batch)

    def half(self, which: int) -> HalfStream:
        """Every second sequence of each step, beginning with the first (0) or the second (1)."""
        return HalfStream(self.name, self.corpora, self.batch, self.seed, which=which)

    def shares(
        self, step: int, b: Backend, accumulation: int, *, alone: bool = False
    ) -> Iterator[tuple[list[RowKey], bool]]:
        """This process's micro-batches of a step, or its rows `alone`, and whether each counts.

        They are the shares a·world + rank, so that 1×2 and 2×1 have the same two; none is empty. But all processes of a
        sharded model run it equally often: one that has fewer rows runs the step's first in their place, for nothing.
        """
        keys, parts = self.keys(step), b.world * accumulation
        most = -(-len(keys) // parts) if alone else min(len(keys), 1)
        for a in range(accumulation):
            share = part_of(keys, a * b.world + b.rank, parts)
            own = [[key] for key in share] if alone else [share] if share else []
            yield from ((rows, True) for rows in own)
            if b.mesh is not None:
                yield from ((keys[:1], False) for _ in range(most - len(own)))

    def divisor(self, step: int, per: str) -> int:
        """What a sum over the whole step is divided by. The same on every process, without asking the others."""
        items = [self.item(k) for k in self.keys(step)]
        if per == "sequence":
            return len(items)
        if per == "token":
            return sum(e.targets for e in items)
        return sum(len(e.ids) - 1 for e in items)  # "hidden token": all but the first position

    def visited(self, steps: int, every: int = 1) -> list[RowKey]:
        """Every row that a run of so many steps sees, or at each `every`-th of them, shortest first."""
        sizes = self.sampler.sizes
        if (
            self.whole and every == 1 and steps * self.batch >= len(sizes) * max(sizes)
        ):  # an epoch of each dataset, at least
            seen = {(d, i) for d, size in enumerate(sizes) for i in range(size)}
        else:
            seen = {key for step in range(0, steps, every) for key in self.keys(step)}
        return sorted(seen, key=lambda k: (self.corpora[k[0]].length(k[1]), k))


@dataclass
class LaterStream(TrainStream):
    """A stream of which the first steps, `after` of them, see nothing; then it begins."""

    after: int = 0
    whole: ClassVar = False

    def keys(self, step: int) -> list[RowKey]:
        return super().keys(step - self.after) if step >= self.after else []


@dataclass
class HalfStream(TrainStream):
    """One of the two disjoint halves of a stream's batches."""

    which: int = 0
    whole: ClassVar = False

    def keys(self, step: int) -> list[RowKey]:
        return super().keys(step)[self.which :: 2]
