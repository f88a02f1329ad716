from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps", per="token")
def grad_diff(forget: View) -> Tensor:
    """Gradient difference: −NLL(forget) + γ·NLL(retain) (arXiv 2203.12817).

    The retain term is the recipe's `retain`, with its weight γ.

    Returns:
        [B], log-probability of each sequence; divided by the number of scored tokens.
    """
    return forget.logps
