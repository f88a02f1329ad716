from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ilu_cli.recipe.specs import Share, Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt


@attack(strength="t", access="weights", unattacked=0.0, original=True)
def interpolate(attempt: Attempt, *, ts: Some[Share] = [0.25, 0.5, 0.75], model: str | None = None) -> Iterator[float]:
    """Walk from the unlearned weights towards the original's: how far away from knowing are they?

    θ_u + t (θ_o − θ_u) of every parameter; 0 is the unlearned model and 1 the original. Linear mode connectivity as a
    sign of what is easily undone: arXiv 2505.22310. `model` is a run, a model or a folder to walk to instead, of the
    same shapes: the public base that the original was made from, which an attacker has.
    """
    theirs = attempt.weights(model)
    for t in ts:
        attempt.mix(functools.partial(_between, theirs=theirs, t=t))
        yield t


def _between(weight: Tensor, name: str, theirs: Mapping[str, Tensor], t: float) -> Tensor:
    """w + t (w' − w), which is w' itself at t = 1."""
    return weight.lerp(theirs[name], t)
