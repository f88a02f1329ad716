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

    −(2/β)·log σ(−(β/|y|)·log π_θ − δ), the paper's eq. 4. The authors' code has β·(−log π_θ/|y| − γ) inside: its γ is
    our δ/β. On TOFU they set γ to 0, β to 2.5 (forget05) or 4.5 (forget10), and weigh this term by 0.1375 or 0.125, the
    retain term by 1: the same as 1 and 7.3 or 8 under Adam, which divides by the gradient's size. On MUSE their code
    (β 0.75 and γ 3 on News, 0.7 and 0 on Books, retain 0.1) takes raw logits for log π_θ/|y|; that is not done here.

    Returns:
        [B], one loss per sequence.
    """
    from torch.nn.functional import softplus

    return 2 / beta * softplus(beta * forget.logps / forget.lengths + delta)
