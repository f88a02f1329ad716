"""How much of the logits exists at a time: tiles of tokens × words, and chunks of tokens with all words."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

ROWS, TILE = 512, 8192  # tokens × words whose logits are held at a time: 17 MB of float32
CHUNK = 256  # rows of whole logits held at a time; at V = 49,152 that is 50 MB of float32
CACHED = 8  # of these, gone over at once where they should stay in a CPU's cache; at V = 49,152 that is 1.6 MB
SHARE, HELD = 64, 14  # of an accelerator's memory that tiles take at most; bytes for each of a tile's logits


def tile_for(memory: int | None) -> tuple[int, int]:
    """Tokens × words of a tile on a device with so many bytes of memory; None: a CPU, whose caches are what counts.

    An accelerator that is fed tile by tile waits for each, so its tiles are as large as a 64th of its memory allows.
    They follow from the device alone and not from what is free: another tile sums in another order, and a run that is
    resumed must come to the same bits.
    """
    if memory is None:
        return ROWS, TILE
    rows = max(ROWS, min(4096, memory // (SHARE * HELD * TILE) // ROWS * ROWS))
    return rows, max(TILE, memory // (SHARE * HELD * rows) // TILE * TILE)


def chunk_for(memory: int | None, words: int) -> int:
    """Rows of whole logits over so many words; see `tile_for`."""
    return CHUNK if memory is None else max(CHUNK, memory // (SHARE * HELD * words) // CHUNK * CHUNK)


def memory_of(device: torch.device) -> int | None:
    """The bytes of an accelerator's memory; None of a CPU, and where they are not told."""
    return None if device.type == "cpu" else _told(device)


@functools.cache
def _told(device: torch.device) -> int | None:
    module: Any = getattr(torch, device.type, None)
    if hasattr(module, "get_device_properties"):
        return int(module.get_device_properties(device).total_memory)
    if hasattr(module, "recommended_max_memory"):  # MPS
        return int(module.recommended_max_memory())
    return None


def spans(length: int, size: int) -> list[slice]:
    """A length in pieces of a size, the last one perhaps shorter."""
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The rows of `hidden` [N, D] whose logits by `weight` [V, D] exist at a time."""
    return spans(hidden.shape[0], chunk_for(memory_of(hidden.device), len(weight)))
