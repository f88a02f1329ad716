from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="elsewhere", per="token")
def ce_u(forget: View) -> Tensor:
    """Cross-entropy to the model's own prediction without the target (CE-U, arXiv 2503.01224).

    CE(q, p) at every scored token, q = stopgrad(softmax(z with z_y = −∞)), so that q_v = p_v/(1 − p_y) for v ≠ y. Its
    slope by the logits is p − q: it takes the target down and leaves the odds of all others, and it is bounded however
    small p_y is. No reference model. The authors leave the first token of each answer out; here every scored token
    counts.

    Returns:
        [B], summed over the scored tokens.
    """
    return forget.per_sequence(forget.elsewhere)
