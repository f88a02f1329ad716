"""Batches run one after another: halved where memory does not suffice, or equally many by all processes of a launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ilu_cli.engine.accel import Backend

T = TypeVar("T")
R = TypeVar("R")


def run_all(b: Backend, batches: list[list[T]], run: Callable[[list[T]], list[R]]) -> list[R]:
    """What `run` gives of the batches, which are used up: all of this process's, or of a sharded model its share.

    A batch that does not fit into memory is run in halves; not of a sharded model, whose processes go in step.
    """
    if b.mesh:
        return [row for batch, counts in b.evenly(batches) for row in run(batch) if counts]
    found: list[R] = []
    while batches:
        batch = batches.pop()
        try:
            found += run(batch)
        except RuntimeError as error:
            if not memory_ran_out(error) or len(batch) == 1:
                raise
            batches += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            torch.cuda.empty_cache()
    return found


def memory_ran_out(error: RuntimeError) -> bool:
    """Whether it is torch.OutOfMemoryError, or what torch raises on a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "not enough memory" in text
