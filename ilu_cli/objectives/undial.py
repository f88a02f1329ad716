from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="distillation reference.final", per="token")
def undial(forget: View, *, strength: PositiveFloat = 10.0) -> Tensor:
    """Self-distillation with adjusted logits (UNDIAL, arXiv 2402.10052).

    Cross-entropy to softmax(z_ref − strength·1[target]): the original model's prediction with the memorised token taken
    down. The teacher comes from cached hidden states and the LM head.

    Returns:
        [B], summed over the scored tokens.
    """
    return forget.per_sequence(forget.distillation(strength)[0])
