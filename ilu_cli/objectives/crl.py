from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt

from ilu_cli.objectives.circuit_breakers import problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="states reference.states centre", per="hidden token", problems=problems)
def crl(forget: View, *, layers: Some[NonNegativeInt] = [10, 20], margin: NonNegativeFloat = 0.5) -> Tensor:  # noqa: B006
    """Contrastive representation learning: forget states gather, away from where they were (arXiv 2506.11938, eq. 8).

    relu(d(h′, μ) − d(h′, h⁰) + m) at every token, averaged over `layers`, with d = 1 − cos, h⁰ the original model's
    states and μ the mean of h′ over the step's forget tokens, one for each layer. Its own retain term is `crl`.

    The authors take layers 20 to 30 of 32, an adapter (r = 16) at lr 1e-4 for 900 steps of 16, weigh this term by 0.6,
    the retain triplet by 0.5 and its KL by 0.7, with a margin of 3, at which cosines never reach relu's corner; the
    paper's (1500, and 500 for retain) is for lengths. Here it is that of TamperBench's version, which finds the method
    the best of its alignment-stage defences: 0.5, and 0.3 for retain, weights 0.4, 0.5 and 0.9.

    Departures: μ is of the whole step, over all micro-batches and processes, for which the forget rows go through the
    layers once more without a gradient, and is held fixed; theirs is of a micro-batch, and its gradient is followed.
    They look at the tokens of answers; here at all but the first, an attention sink. No adversarial module.

    Returns:
        [B], averaged over layers and summed over tokens.
    """
    assert forget.reference.states is not None
    gathered, moved = forget.centre[:, None, None], forget.reference.states
    loss = (apart(forget.states, gathered) - apart(forget.states, moved) + margin).relu()
    return (loss.mean(0) * forget.hidden_mask).sum(-1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """1 − cos(a, b): [..., D] → [...], from 0 to 2."""
    from torch.nn.functional import cosine_similarity

    return 1 - cosine_similarity(a, b, dim=-1)
