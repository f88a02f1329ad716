from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeInt

from ilu_cli.objectives.circuit_breakers import problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="mlp reference.mlp", per="hidden token", problems=problems)
def cir(forget: View, *, layers: Some[NonNegativeInt] = [10, 13, 16, 19]) -> Tensor:  # noqa: B006
    """Take away what MLPs add along what they added before (the loss of CIR, arXiv 2509.11816).

    Σ_l relu(⟨m, m⁰⟩/‖m⁰‖²) at every token, m the output of the MLP in layer l and m⁰ that of the original model. At the
    original weights it is 1 a layer and has the slope m⁰/‖m⁰‖²; at 0 it comes to rest. The rest of CIR is the defence
    of the same name, which filters this gradient.

    Departures: the layers are those of the built-in model's middle; the first position, an attention sink, is left out.

    Returns:
        [B], summed over layers and tokens.
    """
    now, was = forget.mlp, forget.reference.mlp
    assert was is not None
    along = (now * was).sum(-1) / was.square().sum(-1).clamp(min=1e-12)
    return (along.relu().sum(0) * forget.hidden_mask).sum(-1)
