from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt


@attack(strength="directions", access="weights", unattacked=0, original=True)
def strip(attempt: Attempt, *, directions: Some[PositiveInt] = [1, 4, 16], model: str | None = None) -> Iterator[int]:
    """Take the leading singular directions out of what unlearning added to each matrix.

    θ_u − U_k S_k V_kᵀ with θ_u − θ_base = U S Vᵀ and k of `directions`, of every matrix of the decoder's layers, each
    expert's too; all other weights stay. An unlearning of low rank, a merged adapter above all, is gone once k reaches
    its rank: tools of abliteration break circuit breakers so. `model` is the base that the attacker has, a run, a model
    or a folder of the same shapes; null: the original, for an audit. Against a public base that the original was itself
    made from, what goes first is whatever changed the weights most.
    """
    from ilu_cli.models.matrices import matrices
    from ilu_cli.taskvec.subspace import leading_dense

    base, views = attempt.weights(model), {m.name: m for m in matrices(attempt.scorer.model)}
    found: dict[str, tuple[Tensor, Tensor] | None] = {}

    def leading(weight: Tensor, name: str) -> tuple[Tensor, Tensor] | None:
        """(U S [m, k], Vᵀ [k, n]) of what was added to a matrix, for the largest k; None if nothing was."""
        if name not in found:
            added = weight.cpu().double() - views[name].of(base[views[name].param]).double()
            u, s, v = leading_dense(added, max(directions), attempt.seed, name)
            found[name] = ((u * s).to(weight), v.T.to(weight)) if added.any() else None
        return found[name]

    def without(weight: Tensor, name: str, k: int) -> Tensor:
        parts = leading(weight, name)
        return weight if parts is None else weight - parts[0][:, :k] @ parts[1][:k]

    for k in directions:
        attempt.transform(functools.partial(without, k=k))
        yield k
