from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from torch import Tensor


@regularizer(needs="gap")
def irm(values: Tensor, *, variant: Literal["logit"] = "logit") -> Tensor:
    """Invariance penalty of ILU: Σ_i D_i², the IRMv1 gradient norm in closed form (our reading of arXiv 2506.01339).

    With one scalar w on the logits, the derivative of environment i's loss at w = 1 is D_i = mean_t(NLL_t − H_t)
    (arXiv 1907.02893, eq. 4). The estimator is global: 2·stopgrad(D_i)·∇D_i, D_i over the whole batch of the step.
    A model can satisfy it by re-tempering its logits alone; therefore D is logged for each environment.

    Args:
        values: [N], D of each environment.
    """
    return values.square().sum()
