"""Whether padded batches may run as one sequence without padding: by what a decoder is, and by trying it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.layout import SLIDING, Layout, layout_of
from ilu_cli.engine.parity import FAILURES
from ilu_cli.models.kept import source_of, told
from ilu_cli.models.packed import NAME, Packing
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import whole

LENGTHS = (9, 4, 6)  # tokens of the rows that a decoder is tried on
ROUNDING = 1e-4  # of the largest state


def packed(parts: Parts) -> Parts:
    """The same parts, which run padded batches as one sequence if their decoder gives the same states so.

    A decoder does not if its attention is not PyTorch's, reaches over chunks, or has biases by distance; nor if a
    token depends on others in another way (convolutions, state spaces). Then `padded` says why. Rows longer than a
    window stay padded. Of a sharded model all processes must ask together.
    """
    decoder: Any = parts.decoder
    config, layout = decoder.config, layout_of(decoder)
    if parts.head.weight.device.type == "meta":
        return parts
    if why := _why_not(parts, layout):
        return replace(parts, padded=why)
    before, source = config._attn_implementation, source_of(decoder, parts.identity and ["packed", *parts.identity])
    decoder.set_attn_implementation(NAME)
    found = replace(parts, packing=Packing(config.sliding_window if SLIDING in layout.kinds else None))
    if told(source, lambda: _same(parts, found)):
        return found
    decoder.set_attn_implementation(before)
    return replace(parts, padded="without their padding its states would be others")


def _why_not(parts: Parts, layout: Layout) -> str:
    """What speaks against it before it is tried."""
    decoder: Any = parts.decoder
    attention = decoder.config._attn_implementation
    if type(parts).final is not Parts.final:
        return "what is trained stands before or behind its layers"
    if not layout.trees:
        return layout.why
    return "" if attention in ("sdpa", NAME) else f"its attention is {attention}, and not PyTorch's own"


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
