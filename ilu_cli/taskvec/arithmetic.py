"""Task arithmetic: θ + Σ αᵢ τᵢ of one weight (arXiv 2212.04089), plain or through peft's merging functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ilu_cli.data.sampling import seed_of


def combine(
    weight: Tensor, vectors: list[Tensor], alphas: list[float], merge: str, density: float | None, seed: int, name: str
) -> Tensor:
    """θ + merged vectors of one weight, all in float64 and of one shape.

    `linear`: Σ αᵢτᵢ. `magnitude`: each τᵢ keeps its `density` largest entries. `dare` (arXiv 2311.03099): each keeps a
    random share `density`, rescaled by 1/density; the draw depends on seed and name only. `ties` (arXiv 2306.01708):
    trimmed as by magnitude, then per entry the mean of those αᵢτᵢ that have the sign of their sum. The sign is elected
    with α, as a negated vector pulls the other way. Trimming is per weight, not over the whole model.
    """
    from peft.utils import merge_utils

    scaled, ones = [a * v for a, v in zip(alphas, vectors)], torch.ones(len(vectors), dtype=torch.float64)
    merged: Tensor
    if merge == "linear" or density is None:
        merged = merge_utils.task_arithmetic(scaled, ones)
    elif merge == "ties":
        merged = merge_utils.ties(scaled, ones, density)
    elif merge == "magnitude":
        merged = merge_utils.magnitude_prune(scaled, ones, density)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "dare", name))
            merged = merge_utils.dare_linear(scaled, ones, density)
    return weight + merged
