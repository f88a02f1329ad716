from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="margins", per="token")
def pdu(forget: View) -> Tensor:
    """Flattened logits under a bound on the retain loss (primal-dual unlearning, arXiv 2506.05314).

    Σ_t (max_v z_tv − mean_v z_tv)²: the logits z of every scored token are drawn together, towards a uniform
    prediction. The bound R ≤ ε is `retain.dual`, which moves the retain term's weight; the authors' model for TOFU's
    forget05 has ε = 0.3, a first weight of 100 and a dual rate of 5 after 5 epochs.

    Departures: only scored tokens count; the authors' code takes those of the prompt and of the padding too.

    Returns:
        [B], summed over the scored tokens.
    """
    return forget.per_sequence(forget.margins.square())
