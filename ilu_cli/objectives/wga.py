from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="token_nll", per="token")
def wga(forget: View, *, alpha: NonNegativeFloat = 1.0) -> Tensor:
    """Weighted gradient ascent: each token by its own probability (WGA, arXiv 2502.19301).

    −Σ_t stopgrad(p_t^α)·NLL_t: tokens that are forgotten already weigh little, so that the ascent comes to rest.

    Returns:
        [B], summed over the scored tokens.
    """
    nll = forget.token_nll
    return -forget.per_sequence((-alpha * nll.detach()).exp() * nll)
