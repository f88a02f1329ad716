"""Tensors where they lie in safetensors files, read a piece at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ilu_cli.errors import UnavailableError

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
        return math.prod(self.shape)

    def tensor(self) -> torch.Tensor:
        """The whole tensor, in its own type."""
        with self.path.open("rb", buffering=0) as f:
            return Reader(self, f, 0, self.numel).read(self.numel).reshape(self.shape)


class Reader:
    """Successive pieces of a stored tensor, from element `start` on, in one buffer of `size` elements.

    The file is read, not mapped: a read copies each page once, into a buffer that stays in the cache. A mapping costs
    page faults, and what it has touched counts as memory of this process.
    """

    def __init__(self, stored: Stored, file: BinaryIO, start: int, size: int) -> None:
        self._buffer = torch.empty(size, dtype=stored.dtype)
        self._bytes = memoryview(self._buffer.view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._file, self._width, self._stored = file, stored.dtype.itemsize, stored
        file.seek(stored.offset + start * self._width)

    def read(self, n: int) -> torch.Tensor:
        """The next `n` elements; they are overwritten by the next call."""
        done, wanted = 0, n * self._width
        while done < wanted:
            got = self._file.readinto(self._bytes[done:wanted])  # type: ignore[attr-defined]
            if not got:
                raise UnavailableError(f"{self._stored.path} was cut off while it was read")
            done += got
        return self._buffer[:n]

    def array(self, n: int) -> np.ndarray:
        """The next `n` elements for numpy: float32, which holds bf16 and fp16 exactly, or float64."""
        piece = self.read(n)
        return (piece if self._width >= 4 else piece.float()).numpy()


def index(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        UnavailableError: if the file is damaged, cut off, or holds weights of a type that has no differences.
    """
    try:
        with safe_open(path, framework="pt"):  # checks the header and that the file has all bytes it announces
            pass
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: dict[str, Any] = json.loads(f.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnavailableError(f"{path} is damaged: {error}") from error
    header.pop("__metadata__", None)
    if odd := {f"{name} ({t['dtype']})" for name, t in header.items() if t["dtype"] not in DTYPES}:
        raise UnavailableError(f"{path} has weights that are no floating-point numbers: {', '.join(sorted(odd))}")
    start = 8 + length
    return {
        name: Stored(path.resolve(), tuple(t["shape"]), DTYPES[t["dtype"]], start + t["data_offsets"][0])
        for name, t in header.items()
    }
