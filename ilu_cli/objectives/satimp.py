from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="token_nll", per="token")
def satimp(forget: View, *, beta1: NonNegativeFloat = 5.0, beta2: NonNegativeFloat = 1.0) -> Tensor:
    """Gradient ascent weighted by saturation and importance of each token (SatImp, arXiv 2505.11953).

    −Σ_t stopgrad(p_t^β1·(1 − p_t)^β2)·NLL_t, p_t the probability of the token: what is forgotten weighs little, and so
    does what is certain. β1 = 5 and β2 = 1 are the defaults of the authors' code in open-unlearning, with 0.1 on the
    retain term. With β2 = 0 this is `wga`.

    Returns:
        [B], summed over the scored tokens.
    """
    nll = forget.token_nll
    p = (-nll.detach()).exp()
    return -forget.per_sequence(p**beta1 * (1 - p).clamp(min=0) ** beta2 * nll)
