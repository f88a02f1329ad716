from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli.recipe.specs import Fraction, Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt


@attack(strength="fraction", access="weights", unattacked=0.0)
def prune(attempt: Attempt, *, fractions: Some[Fraction] = [0.1, 0.2, 0.3, 0.5]) -> Iterator[float]:
    """Set the smallest weights to zero: is the forgetting carried by weights that do little else?

    Magnitude pruning (arXiv 1506.02626) of every matrix of the decoder's layers by itself, each expert's too but no
    router, without retraining; as an attack on safety and unlearning it stands in arXiv 2402.05162.
    """
    for fraction in fractions:
        attempt.transform(functools.partial(_pruned, fraction=fraction))
        yield fraction


def _pruned(weight: Tensor, _name: str, fraction: float) -> Tensor:
    return without_smallest(weight, fraction)


def without_smallest(weight: Tensor, fraction: float) -> Tensor:
    """Zero the ⌊fraction · n⌋ entries of smallest magnitude of a tensor of n entries; ties go by position."""
    gone = int(fraction * weight.numel())
    order = weight.abs().flatten().argsort(stable=True)
    pruned = weight.flatten().clone()
    pruned[order[:gone]] = 0
    return pruned.view_as(weight)
