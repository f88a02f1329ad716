from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps reference.logps", per="sequence", chosen="counterfactual")
def dpo(forget: View, *, beta: PositiveFloat = 0.1) -> Tensor:
    """Direct preference optimisation towards a wrong answer of the same form (arXiv 2305.18290, eq. 7; 2404.05868).

    −(2/β)·log σ(β·((log π_θ − log π_ref)(y_w|x) − (log π_θ − log π_ref)(y_l|x))) with y_l the forget sequence and y_w
    the task's `counterfactual`. The factor 2/β is NPO's, which is this loss without y_w.

    With answers that the model itself gave as `counterfactual` this is `altpo`.

    Returns:
        [B], one loss per pair.
    """
    from ilu_cli.objectives.npo import log_ratio, preference_loss

    assert forget.chosen is not None
    return preference_loss(log_ratio(forget) - log_ratio(forget.chosen), beta)
