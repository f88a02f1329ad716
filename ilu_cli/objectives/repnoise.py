from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt

from ilu_cli.objectives.circuit_breakers import problems
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View

KERNELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths, as multiples of a mean squared distance


@objective(needs="states lens", per="sequence", problems=problems)
def repnoise(
    forget: View,
    *,
    layers: Some[NonNegativeInt] = [10, 20],  # noqa: B006
    alpha: NonNegativeFloat = 1.0,
    beta: NonNegativeFloat = 0.001,
) -> Tensor:
    """Representation noising: forget states become noise, and no layer predicts the text (arXiv 2405.14577, eq. 4).

    β·MMD²(h′, N(0, I)) − α·log(1 + NLL), of each sequence: h′ its states at all tokens but the first, averaged over
    `layers` (`mmd`); NLL the mean over `layers` and scored tokens, read at each layer through the final norm and the LM
    head (the logit lens). The NLL of what is kept, the third of the authors' terms, is the retain term `nll`.

    The authors take all layers, β = 0.001 and α = 1, at lr 2e-5. Independent reproduction found the defence poor
    (arXiv 2412.07097). Departures: their samples are a batch's sequences, each all activations of the MLPs in a row,
    against noise drawn anew, and their log is of the batch's mean; here samples are the tokens of one sequence, the
    noise is its whole distribution, and both terms are of one sequence, so that a split of the batch changes nothing.
    The outputs of layers are read, and all tokens but the first, not those in which a pair of answers differs.

    Returns:
        [B], one loss per sequence.
    """
    share = forget.hidden_mask / forget.hidden_mask.sum(-1, keepdim=True)
    noise = mmd(forget.states, share).mean(0)
    nll = forget.per_sequence(forget.lens.mean(0)) / forget.lengths
    return beta * noise - alpha * nll.log1p()


def mmd(x: Tensor, share: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of weighted points to N(0, I), exactly: [..., B, T, D] and [B, T] → [..., B].

    Σ_ij s_i·s_j·k(x_i, x_j) − 2·Σ_i s_i·E k(x_i, y) + E k(y, y′), y and y′ from N(0, I), k a sum of exp(−‖·‖²/b) over
    five b, multiples of the mean squared distance of half points, half noise, which is held fixed.

    E exp(−‖x − y‖²/b) = (b/(b + 2))^(D/2)·exp(−‖x‖²/(b + 2)), and E exp(−‖y − y′‖²/b) = (b/(b + 4))^(D/2).

    Args:
        share: weights s of each row, which sum to 1.
    """
    size, square = x.shape[-1], x.square().sum(-1)
    apart = (square[..., :, None] + square[..., None, :] - 2 * x @ x.transpose(-1, -2)).clamp(min=0)
    pairs = share[:, :, None] * share[:, None, :]
    among, length = (pairs * apart).sum((-1, -2)), (share * square).sum(-1)
    spread = (among / 4 + (length + size) / 2 + size / 2).detach()
    found = x.new_zeros(spread.shape)
    for multiple in KERNELS:
        b = multiple * spread
        inside = (pairs * (-apart / b[..., None, None]).exp()).sum((-1, -2))
        across = (share * (-square / (b[..., None] + 2)).exp()).sum(-1) * (1 + 2 / b) ** (-size / 2)
        found = found + inside - 2 * across + (1 + 4 / b) ** (-size / 2)
    return found
