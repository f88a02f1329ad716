from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.recipe.specs import LayerOrAuto
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="hidden reference.norm", per="hidden token")
def rmu(
    forget: View, *, layer: LayerOrAuto = "auto", coefficient: PositiveFloat = 2.0, adaptive: bool = True
) -> Tensor:
    """Representation misdirection for unlearning, fixed or adaptive coefficient (arXiv 2403.03218, eq. 1).

    MSE between the hidden states of the forget data at `layer` and c·u, u a fixed random unit vector, one for each
    forget dataset (the authors' topics; theirs alternate from batch to batch, here each batch has all). `adaptive`
    scales c by the median norm of the original model's retain activations there; after arXiv 2410.16454, which scales
    per forget sample instead. `layer: auto` is the last of the model's first quarter. The first position is left out:
    it is an attention sink of huge norm.

    Returns:
        [B], squared error averaged over hidden units and summed over tokens.
    """
    c = coefficient * (forget.reference.norm or 0.0) if adaptive else coefficient
    error = (forget.hidden - c * forget.directions("rmu")[:, None]).square().mean(-1)
    return (error * forget.hidden_mask).sum(-1)
