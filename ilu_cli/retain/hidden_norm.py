from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import retain_term

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@retain_term(needs="states reference.states", per="hidden token")
def hidden_norm(retain: View) -> Tensor:
    """Keep the retain data's hidden states at the objective's layers (circuit breakers' L_r, arXiv 2406.04313).

    ‖h′ − h⁰‖₂ at every token, averaged over the layers. The authors take the states of all layers; here those of the
    objective's `layers`, so that what is kept in memory stays small. The first position is left out.

    Returns:
        [B], averaged over layers and summed over tokens.
    """
    assert retain.reference.states is not None
    apart: Tensor = (retain.states - retain.reference.states).norm(dim=-1)
    return (apart.mean(0) * retain.hidden_mask).sum(-1)
