from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from ilu_cli.registry import retain_term

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@retain_term(needs="states reference.states centre distillation reference.final", per="hidden token")
def crl(retain: View, *, margin: NonNegativeFloat = 0.3, kl: NonNegativeFloat = 1.8) -> Tensor:
    """Keep retain states near where they were and off the forget data's (CRL's L_b and KL, arXiv 2506.11938, eq. 7).

    relu(d(b⁰, b′) − d(b′, μ) + m) at every token, averaged over the objective's layers, plus `kl` times KL(π_ref ‖ π_θ)
    at every scored token; d and μ as in the objective `crl`, b⁰ the original model's states. The default of `kl` is
    TamperBench's 0.9 over the 0.5 of its triplet; with its 0.4 of the forget term this term's weight is 1.25.

    Departures: both parts are divided by the number of tokens but the first, which is that of scored tokens where a
    text has no prompt. The authors' KL is at temperature 2, and their states of all layers. The model is run once to
    the deepest layer and once to its end.

    Returns:
        [B], averaged over layers and summed over tokens.
    """
    from ilu_cli.objectives.crl import apart
    from ilu_cli.retain.kl import kl as divergence

    assert retain.reference.states is not None
    near, far = apart(retain.reference.states, retain.states), apart(retain.states, retain.centre[:, None, None])
    loss = (near - far + margin).relu()
    return (loss.mean(0) * retain.hidden_mask).sum(-1) + kl * divergence(retain)
