from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import retain_term

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@retain_term(needs="hidden reference.hidden", per="hidden token")
def hidden_mse(retain: View) -> Tensor:
    """Keep the retain data's hidden states at the objective's layer (RMU's retain term, arXiv 2403.03218, eq. 2).

    The first position is left out: it is an attention sink of huge norm.

    Returns:
        [B], squared error averaged over hidden units and summed over tokens.
    """
    assert retain.reference.hidden is not None
    error = (retain.hidden - retain.reference.hidden).square().mean(-1)
    return (error * retain.hidden_mask).sum(-1)
