from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt


@attack(strength="sigma", access="weights", unattacked=0.0)
def noise(attempt: Attempt, *, sigmas: Some[PositiveFloat] = [0.02, 0.05, 0.1, 0.2]) -> Iterator[float]:
    """Add Gaussian noise to the weights: is the forgetting a fragile place in weight space?

    Each matrix of the decoder's layers, each expert's too but no router, gets noise of σ times its own standard
    deviation, drawn by the seed; the same draw is scaled for every σ. Injected noise as a test for hidden
    capabilities: arXiv 2412.01784.
    """
    for sigma in sigmas:
        attempt.transform(functools.partial(noisy, sigma=sigma, seed=attempt.seed))
        yield sigma


def noisy(weight: Tensor, name: str, sigma: float, seed: int) -> Tensor:
    """w + σ · std(w) · ε with ε ~ N(0, 1) from the stream of this seed and name."""
    import torch

    from ilu_cli.data.sampling import seed_of

    generator = torch.Generator().manual_seed(seed_of(seed, "noise", name))
    draw = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
    return weight + sigma * weight.std() * draw
