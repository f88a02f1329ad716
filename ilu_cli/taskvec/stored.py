"""Tensors where they lie in safetensors files, read a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import tensors_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. Two of them are equal only if they are the same bytes of the same file."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def numel(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    def tensor(self) -> torch.Tensor:
        """The whole tensor, in its own type."""
        found = torch.empty(self.numel, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as f:
            f.seek(self.offset)
            _fill(f, _bytes(found), self.path)
        return found.reshape(self.shape)


@contextmanager
def side_by_side(stored: list[Stored], start: int, size: int) -> Iterator[Callable[[int], np.ndarray]]:
    """Read tensors of one shape together, from element `start` on, a piece of at most `size` elements at a time.

    The files are read, not mapped: a read copies each page once, into a buffer that stays in the cache. A mapping costs
    page faults, and what it has touched counts as memory of this process. Tensors of one type lie in one buffer, so
    that a piece takes few calls: between them the threads wait for each other's interpreter lock.

    Yields:
        A function of n that gives the next n elements of each, float64 [tensors, n] in the order given; the next call
        overwrites them.
    """
    wide = np.empty((len(stored), size))
    with ExitStack() as stack:
        groups = []
        for dtype in dict.fromkeys(s.dtype for s in stored):
            rows = [i for i, s in enumerate(stored) if s.dtype == dtype]
            raw = torch.empty(len(rows), size, dtype=dtype)
            files = [stack.enter_context(stored[i].path.open("rb", buffering=0)) for i in rows]
            for file, i in zip(files, rows):
                file.seek(stored[i].offset + start * dtype.itemsize)
            sources = [(file, _bytes(row), stored[i].path) for file, row, i in zip(files, raw, rows)]
            at = slice(None) if len(rows) == len(stored) else rows
            groups.append((sources, raw, at, dtype.itemsize))

        def piece(n: int) -> np.ndarray:
            for sources, raw, at, width in groups:
                for file, view, path in sources:
                    _fill(file, view[: n * width], path)
                # numpy widens faster, and has no bfloat16
                wide[at, :n] = raw.numpy()[:, :n] if width >= 4 else raw[:, :n].float().numpy()
            return wide[:, :n]

        yield piece


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(torch.uint8).numpy().data


def _fill(file: Any, view: memoryview, path: Path) -> None:
    """Read until `view` is full.

    Raises:
        UnavailableError: if the file ends before.
    """
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise UnavailableError(f"{path} was cut off while it was read")
        done += got


def index(path: Path, names: Container[str]) -> dict[str, Stored]:
    """Those tensors of a safetensors file that have one of the names.

    Raises:
        UnavailableError: if the file is damaged, cut off, or holds weights of a type that has no differences.
    """
    held = {name: t for name, t in tensors_of(path).items() if name in names}
    if odd := {f"{name} ({t['dtype']})" for name, t in held.items() if t["dtype"] not in DTYPES}:
        raise UnavailableError(f"{path} has weights that are no floating-point numbers: {', '.join(sorted(odd))}")
    return {n: Stored(path.resolve(), t["shape"], DTYPES[t["dtype"]], t["start"]) for n, t in held.items()}
