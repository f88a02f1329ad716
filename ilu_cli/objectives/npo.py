from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps reference.logps", per="sequence")
def npo(forget: View, *, beta: PositiveFloat = 0.1, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868, eq. 3).

    (2/β)·softplus(β·(log π_θ − log π_ref)), with log-probabilities of whole sequences. `sum` is the paper's;
    `mean` takes the token mean of each sequence (β is not transferable between the two). The ILU authors' code takes
    the token mean of the whole batch, which would make the loss depend on how the batch is split.

    Returns:
        [B], one loss per sequence.
    """
    ratio = log_ratio(forget)
    return preference_loss(ratio / forget.lengths if reduction == "mean" else ratio, beta)


def log_ratio(view: View) -> Tensor:
    """[B], log π_θ − log π_ref of each sequence."""
    assert view.reference.logps is not None
    return view.logps - view.reference.logps


def preference_loss(margin: Tensor, beta: float) -> Tensor:
    """−(2/β)·log σ(−β·margin), the loss that NPO and DPO share: [B] → [B]."""
    from torch.nn.functional import softplus

    return 2 / beta * softplus(beta * margin)
