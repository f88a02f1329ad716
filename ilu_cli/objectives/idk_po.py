from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps reference.logps", per="sequence", chosen="refusal")
def idk_po(forget: View, *, beta: PositiveFloat = 0.1) -> Tensor:
    """DPO towards saying that one does not know (IdkPO; arXiv 2401.06121, 2404.05868).

    As `dpo`, with y_w the task's `refusal`.

    Returns:
        [B], one loss per pair.
    """
    from ilu_cli.objectives.npo import log_ratio, preference_loss

    assert forget.chosen is not None
    return preference_loss(log_ratio(forget) - log_ratio(forget.chosen), beta)
