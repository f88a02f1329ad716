from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps", per="token")
def grad_ascent(forget: View) -> Tensor:
    """Gradient ascent: −NLL(forget), and nothing to hold it back (arXiv 2210.01504).

    The loss has no lower bound; with more than a few steps it destroys the model. The recipe should have no retain term
    (with one it is `grad_diff`).

    Returns:
        [B], log-probability of each sequence; divided by the number of scored tokens.
    """
    return forget.logps
