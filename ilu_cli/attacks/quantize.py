from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt

Bits = Annotated[int, Field(ge=2, le=16)]


@attack(strength="bits", access="weights", unattacked=32)
def quantize(attempt: Attempt, *, bits: Some[Bits] = [8, 4], group: PositiveInt | None = 64) -> Iterator[int]:
    """Round the weights to a few bits: changes smaller than half a step of the grid are undone.

    Round-to-nearest quantisation of the matrices of the decoder's layers, arXiv 2410.16454, eq. 3. `group` inputs of
    an output channel share a scale (null: all of them), whichever way round the model stores a matrix, and each expert
    is quantised as a matrix of its own; routers are not. The weights are evaluated as what they stand for, in float32.
    """
    for b in bits:
        attempt.transform(functools.partial(_rounded, bits=b, group=group))
        yield b


def _rounded(weight: Tensor, _name: str, bits: int, group: int | None) -> Tensor:
    return round_to_nearest(weight, bits, group)


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Δ·round(w / Δ) with Δ = max|w| / (2^(bits−1) − 1) over each group of a row.

    weight: [..., I]; the last dimension is cut into groups of `group`, the last of which may be shorter. The paper
    divides by 2^(bits−1), which has no code for +max|w|; here the grid is symmetric and the largest weight is exact.
    """
    import torch

    levels = 2 ** (bits - 1) - 1
    parts = weight.split(group or weight.shape[-1], dim=-1)
    scales = [p.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny) / levels for p in parts]
    return torch.cat([(p / s).round() * s for p, s in zip(parts, scales)], dim=-1)
