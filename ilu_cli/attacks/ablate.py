from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from ilu_cli.errors import UsageError
from ilu_cli.recipe.specs import DataRefs
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt

CHANGED = 1e-4  # a layer is changed if ‖mean difference‖ exceeds this share of the mean ‖h‖


@attack(strength="directions", access="activations", unattacked=0)
def ablate(
    attempt: Attempt,
    *,
    data: DataRefs | None = None,
    directions: list[PositiveInt] = [1, 2, 4],
    layers: list[NonNegativeInt] | None = None,
    prompts: PositiveInt = 64,
) -> Iterator[int]:
    """Project the unlearning direction out of the residual stream.

    arXiv 2409.18025 (after arXiv 2406.11717): at each of `layers` the first direction is the mean difference between
    hidden states of the unlearned and the original model; the next are the principal components of what is left of the
    differences. `layers: null` is the one layer at which the mean difference, as a share of the hidden states' norm,
    grows the most: what is taken out where it enters the stream need not be taken out again, and doing so at every
    layer breaks a model. The directions are fitted on `prompts` texts of the `test` split of `data`, by default the
    forget data, none of which contains a question of the benchmark; the first position, an attention sink, is left out.
    The attacker needs the original model, so this is an audit more than an attack.

    Raises:
        UsageError: if a layer does not exist, or no text is left to fit on.
    """
    import torch

    from ilu_cli.attacks import texts_of
    from ilu_cli.engine.probe import text_states

    questions = [i["question"] for items in attempt.questions().values() for i in items]
    texts = [t for t in texts_of(data or []) if not any(q in t for q in questions)]
    texts = random.Random(f"ablate-{attempt.seed}").sample(texts, min(prompts, len(texts)))
    if not texts:
        raise UsageError("ablate: every text of attack.data contains a question of the benchmark")
    now = text_states(attempt.scorer, texts)
    with attempt.original():
        before = text_states(attempt.scorer, texts)
    share = (now - before).mean(1).norm(dim=-1) / before.norm(dim=-1).mean(-1)
    enters = int(torch.diff(share, prepend=share.new_zeros(1)).argmax())
    wanted = [enters] if layers is None else layers
    if max(wanted) >= len(share):
        raise UsageError(f"attack.layers: {max(wanted)} does not exist, the model has layers 0 to {len(share) - 1}")
    wanted = [n for n in wanted if share[n] > CHANGED]
    if not wanted:
        attempt.note("ablate: this model's hidden states are the original's; there is no direction to remove")
    for n in wanted:
        attempt.note(f"ablate: layer {n}, where the states moved by {share[n]:.0%} of their norm")
    bases = {n: basis(now[n] - before[n], max(directions)) for n in wanted}
    for r in directions:
        attempt.hook({n: functools.partial(without, basis=b[:, :r]) for n, b in bases.items()})
        yield r


def basis(differences: Tensor, rank: int) -> Tensor:
    """Orthonormal [D, r], r ≤ rank, for differences [N, D]: their mean, then components of what is left of them."""
    import torch

    mean = torch.nn.functional.normalize(differences.mean(0), dim=0)[:, None]
    rest = without(differences, mean)
    components = torch.linalg.svd(rest, full_matrices=False).Vh[: rank - 1].T
    return torch.linalg.qr(torch.cat([mean, components], dim=1)).Q


def without(hidden: Tensor, basis: Tensor) -> Tensor:
    """h − B Bᵀ h for hidden states [..., D] and an orthonormal basis B [D, r]."""
    basis = basis.to(hidden)
    return hidden - hidden @ basis @ basis.T
