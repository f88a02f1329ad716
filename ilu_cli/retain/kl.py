from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import retain_term

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@retain_term(needs="distillation reference.final", per="token")
def kl(retain: View) -> Tensor:
    """KL divergence from the original model's predictions to ours on the retain data (as in arXiv 2401.06121).

    KL(π_ref ‖ π_θ) at every scored token, π_ref from cached hidden states and the LM head.

    Returns:
        [B], summed over the scored tokens.
    """
    cross_entropy, entropy = retain.distillation()
    return retain.per_sequence(cross_entropy - entropy)
