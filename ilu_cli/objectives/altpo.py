from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View

Made = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="sha256 of the answers; filled in by a plan")]


@objective(needs="logps reference.logps", per="sequence", chosen="alternative")
def altpo(
    forget: View, *, beta: PositiveFloat = 0.1, answers: Literal["model", "task"] = "model", made: Made | None = None
) -> Tensor:
    """NPO with alternative answers that are preferred, the model's own (AltPO, arXiv 2409.13474).

    −(2/β)·log σ(β·((log π_θ − log π_ref)(y_a|x) − (log π_θ − log π_ref)(y|x))), y the forget sequence and y_a the same
    with another answer in its place. `model`: the model is asked the question of each fact and draws its answer, until
    it is not the right one and of its form; after four tries it gets the answer of another fact. A benchmark of the
    forget data tells question and answer, or rows have them as `prompt` and `response`. `task`: the task's own
    `counterfactual`, which makes this `dpo`.

    Departures: the authors draw five alternatives a question, asked for by an instruction; here each fact has one,
    drawn at temperature 1 as a continuation, the same in all of its rows.

    Returns:
        [B], one loss per pair.
    """
    from ilu_cli.objectives.npo import log_ratio, preference_loss

    assert forget.chosen is not None
    return preference_loss(log_ratio(forget) - log_ratio(forget.chosen), beta)
