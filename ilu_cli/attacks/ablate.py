from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from ilu_cli.recipe.refs import DataRefs
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt

CHANGED = 1e-4  # a layer is changed if ‖mean difference‖ exceeds this share of the mean ‖h‖


@attack(strength="directions", access="activations", unattacked=0, original=True)
def ablate(
    attempt: Attempt,
    *,
    data: DataRefs | None = None,
    directions: Some[PositiveInt] = [1, 2, 4],
    layers: Some[NonNegativeInt] | None = None,
    prompts: PositiveInt = 64,
) -> Iterator[int]:
    """Project the unlearning direction out of the residual stream.

    arXiv 2409.18025 (after arXiv 2406.11717): at each of `layers` the first direction is the mean difference between
    hidden states of the unlearned and the original model; the next are the principal components of what is left of the
    differences. `layers: null` is the one layer at which the mean difference, as a share of the hidden states' norm,
    grows the most: what is taken out where it enters the stream need not be taken out again, and doing so at every
    layer breaks a model. The directions are fitted on `prompts` texts of the `test` split of `data`, by default the
    forget data; of a user's file, which has one split, on its rows, which the model may have unlearned. None of the
    texts contains a question of a multiple-choice benchmark of the forget topic; the first position, an attention
    sink, is left out. The attacker needs the original model, so this is an audit more than an attack.

    Raises:
        UsageError: if no text is left to fit on.
    """
    from ilu_cli.attacks import texts_to_fit
    from ilu_cli.engine.probe import text_states

    texts = texts_to_fit(attempt, data or [], prompts, "ablate")
    now = text_states(attempt.scorer, texts)
    with attempt.original():
        before = text_states(attempt.scorer, texts)
    bases = {n: basis(now[n] - before[n], max(directions)) for n in _moved(attempt, now, before, layers)}
    for r in directions:
        attempt.hook({n: functools.partial(without, basis=b[:, :r]) for n, b in bases.items()})
        yield r


def _moved(attempt: Attempt, now: Tensor, before: Tensor, layers: list[int] | None) -> list[int]:
    """Those of `layers` at which the mean state is another than the original's; the user is told of the others."""
    share = moved_by((now - before).mean(1), before)
    wanted = [enters(share)] if layers is None else layers
    moved = [n for n in wanted if share[n] > CHANGED]
    for n in moved:
        attempt.note(f"ablate: layer {n}, where the states moved by {share[n]:.0%} of their norm")
    if unmoved := sorted(set(wanted) - set(moved)):
        where = f"layers {', '.join(map(str, unmoved))}" if share.max() > CHANGED else "all layers"
        attempt.note(f"ablate: the hidden states of {where} are the original's; there is no direction to remove")
    return moved


def moved_by(vectors: Tensor, states: Tensor) -> Tensor:
    """[L]: the norms of vectors [L, D] as shares of the mean ‖h‖ of states [L, N, D]."""
    found: Tensor = vectors.norm(dim=-1) / states.norm(dim=-1).mean(-1)
    return found


def enters(share: Tensor) -> int:
    """The layer at which a share [L] grows the most."""
    import torch

    return int(torch.diff(share, prepend=share.new_zeros(1)).argmax())


def basis(differences: Tensor, rank: int) -> Tensor:
    """Orthonormal [D, r], r ≤ rank, for differences [N, D]: their mean, then components of what is left of them."""
    import torch

    mean = torch.nn.functional.normalize(differences.mean(0), dim=0)[:, None]
    rest = without(differences, mean)
    components = torch.linalg.svd(rest, full_matrices=False).Vh[: rank - 1].T
    found: Tensor = torch.linalg.qr(torch.cat([mean, components], dim=1)).Q
    return found


def without(hidden: Tensor, basis: Tensor) -> Tensor:
    """h − B Bᵀ h for hidden states [..., D] and an orthonormal basis B [D, r]."""
    basis = basis.to(hidden)
    return hidden - hidden @ basis @ basis.T
