"""A right-padded batch run as one sequence without padding: rows stand behind each other, each attends to itself alone.

Only attention looks from one token at another; so all else of a decoder runs on the real tokens, and attention takes
the rows apart again, those of like length together, each padded on its right, where no token before it looks.

On CPUs PyTorch's fused attention takes longer in bfloat16 than in float32, most of all its backward pass on short rows;
so short rows are turned into float32 for it, which rounds less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ilu"  # of the attention below, among those of transformers
SHORT = 256  # tokens of the rows that attend in float32 on a CPU
WORTH = 0.95  # the share of real tokens up to which taking rows apart and together again is paid back
LIKE, SLACK = 1.5, 16  # rows attend together up to so many times the length of the shortest, and so many tokens more


@dataclass(frozen=True)
class Group:
    """Rows of like length that attend together: `count` of T tokens with their padding.

    start, stop: where they lie in the sequence. padded: [count·T], which token of the sequence stands there. real:
    which of those are no padding, in the order of the sequence; None where all are.
    """

    start: int
    stop: int
    count: int
    padded: Tensor
    real: Tensor | None

    def apart(self, x: Tensor) -> Tensor:
        """[1, H, N, d] → [count, H, T, d]."""
        own = x[0, :, self.start : self.stop] if self.real is None else x[0].index_select(1, self.padded)
        return own.view(own.shape[0], self.count, -1, own.shape[-1]).transpose(0, 1)

    def together(self, x: Tensor) -> Tensor:
        """[count, T, H, d] → [real tokens, H, d]."""
        flat = x.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)


@dataclass(frozen=True)
class Packing:
    """When batches are packed: those with enough padding, and with rows no longer than a `window` of attention."""

    window: int | None = None

    def rows(self, mask: Tensor) -> PackedRows | None:
        """Where the rows of a mask [B, T] go; None where the batch stays as it is, as one padded on its left does."""
        if (self.window is not None and mask.shape[1] > self.window) or float(mask.sum()) > WORTH * mask.numel():
            return None
        return PackedRows.of(mask) if bool((mask[:, 1:] <= mask[:, :-1]).all()) else None

    def told(self) -> str:
        """What is done, for the record of a run."""
        return "packed" if self.window is None else f"packed, but for rows of more than {self.window} tokens"


@dataclass(frozen=True)
class PackedRows:
    """Where the real tokens of a batch [B, T] stand in one sequence of N, the shortest row first.

    places: [N], their places in the flattened batch. positions: [1, N], in their rows.
    """

    shape: tuple[int, int]
    places: Tensor
    positions: Tensor
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, mask: Tensor) -> PackedRows:
        """The rows of a mask [B, T], ones and then zeros in each."""
        b, t = mask.shape
        lengths = mask.sum(-1).tolist()
        order = sorted(range(b), key=lengths.__getitem__)
        places = [r * t + i for r in order for i in range(lengths[r])]
        positions = [i for r in order for i in range(lengths[r])]
        groups = tuple(_groups([lengths[r] for r in order], mask.device))
        device = mask.device
        return cls((b, t), torch.tensor(places, device=device), torch.tensor([positions], device=device), groups)

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What a decoder is given for ids [B, T]: a mask of four dimensions is handed on, and read by nobody."""
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
        return {"input_ids": self.pack(ids), "attention_mask": mask, "position_ids": self.positions, "rows": self}

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, …] → [1, N, …]."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, N, …] → [B, T, …], with zeros for padding."""
        b, t = self.shape
        return x.new_zeros(b * t, *x.shape[2:]).index_copy(0, self.places, x[0]).view(b, t, *x.shape[2:])


def _groups(lengths: list[int], device: torch.device) -> Iterator[Group]:
    """Rows of these ascending lengths, in groups."""
    ends, first = [0, *accumulate(lengths)], 0
    while first < len(lengths):
        last = first
        while last < len(lengths) and lengths[last] <= LIKE * lengths[first] + SLACK:
            last += 1
        rows, t = range(first, last), lengths[last - 1]
        padded = [ends[r] + min(i, lengths[r] - 1) for r in rows for i in range(t)]  # padding repeats the last token
        real = [(r - first) * t + i for r in rows for i in range(lengths[r])]
        same = lengths[first] == t
        yield Group(
            ends[first], ends[last], len(rows), torch.tensor(padded, device=device),
            None if same else torch.tensor(real, device=device),
        )  # fmt: skip
        first = last


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of [B, H, T, d]; of `rows` that stand in one sequence [1, H, N, d], each by itself."""
    if rows is None:
        return _fused(module, query, key, value, mask, **kwargs), None
    found = [
        g.together(_fused(module, g.apart(query), g.apart(key), g.apart(value), None, **kwargs)) for g in rows.groups
    ]
    return torch.cat(found)[None], None


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """PyTorch's attention, [B, T, H, d]."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    if kind != "cpu" or dtype != torch.bfloat16 or query.shape[2] > SHORT:
        plain: Tensor = sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
        return plain
    bias = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast(kind, enabled=False):
        found: Tensor = sdpa_attention_forward(module, query.float(), key.float(), value.float(), bias, **kwargs)[0]
    return found.to(dtype)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
