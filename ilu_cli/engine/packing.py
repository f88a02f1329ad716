"""Whether padded batches may run as one sequence without padding: by what a decoder is, and by trying it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.layout import SLIDING, layout_of
from ilu_cli.engine.parity import FAILURES
from ilu_cli.models.packed import NAME, Packing
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import whole

LENGTHS = (9, 4, 6)  # tokens of the rows that a decoder is tried on
ROUNDING = 1e-4  # of the largest state


def packed(parts: Parts) -> Parts:
    """The same parts, which run padded batches as one sequence if their decoder gives the same states so.

    A decoder does not if its attention is not PyTorch's, reaches over chunks, or has biases by distance; nor if a
    token depends on others in another way (convolutions, state spaces). Rows longer than a window stay padded.
    """
    decoder: Any = parts.decoder
    config, layout = decoder.config, layout_of(decoder)
    if type(parts).final is not Parts.final or not layout.trees or config._attn_implementation not in ("sdpa", NAME):
        return parts
    if parts.head.weight.device.type == "meta":
        return parts
    before = config._attn_implementation
    decoder.set_attn_implementation(NAME)
    found = replace(parts, packing=Packing(config.sliding_window if SLIDING in layout.kinds else None))
    if _same(parts, found):
        return found
    decoder.set_attn_implementation(before)
    return parts


@torch.no_grad()
def _same(padded: Parts, packed: Parts) -> bool:
    """Whether the last hidden states of a few short rows are the same both ways."""
    weight = padded.head.weight
    rows = [[(7 * i + n) % len(weight) for i in range(n)] for n in LENGTHS]
    batch = collate([Encoded(row, 1) for row in rows]).to(weight.device)
    try:
        ours, theirs = (
            whole(p.decoder, partial(p.final, batch.ids, batch.mask))[batch.mask].float() for p in (packed, padded)
        )
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return bool((ours - theirs).abs().max() <= ROUNDING * theirs.abs().max())
