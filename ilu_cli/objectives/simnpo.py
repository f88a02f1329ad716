from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps", per="sequence")
def simnpo(forget: View, *, beta: PositiveFloat = 2.5, delta: NonNegativeFloat = 0.0) -> Tensor:
    """NPO without a reference model, by length-normalised log-probabilities (SimNPO, arXiv 2410.07163).

    −(2/β)·log σ(−(β/|y|)·log π_θ − δ). The authors use β 2.5 to 4.5 and δ 0 to 0.125 on TOFU, β 0.7 on MUSE.

    Returns:
        [B], one loss per sequence.
    """
    from torch.nn.functional import softplus

    return 2 / beta * softplus(beta * forget.logps / forget.lengths + delta)
