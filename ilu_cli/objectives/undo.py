from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat

from ilu_cli.recipe.specs import Fraction
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients
    from ilu_cli.engine.view import View
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """Nothing general to distil on, weights that are not the model's own, and a bound that the noise exceeds."""
    if recipe.retain is None:
        yield (*key, "name"), "undo distils the parent on general text: give it `retain: {name: kl, data: [prose]}`"
    if recipe.lora is not None:
        yield ("lora",), "undo puts noise into a model's own weights: leave lora out"
    if recipe.train.budget is not None:
        yield ("train", "budget"), "undo begins with a damaged model, far beyond any budget: leave it out"


def corrupt(own: Any, grads: Gradients) -> None:
    """θ ← (1 − α)·θ + α·β·n for every trained weight, n Xavier-uniform noise in matrices and 0 elsewhere."""
    import torch

    from ilu_cli.data.sampling import seed_of
    from ilu_cli.models.sharded import like

    with torch.no_grad():
        for name, p in grads.named.items():
            p.mul_(1 - own.alpha)
            if p.ndim < 2 or not own.beta:
                continue
            generator = torch.Generator().manual_seed(seed_of(grads.seed, "undo", name))
            bound = math.sqrt(6 / (p.shape[-2] + p.shape[-1]))
            noise = torch.empty(p.shape).uniform_(-bound, bound, generator=generator)
            p.add_(like(noise.to(p.device, p.dtype), p), alpha=own.alpha * own.beta)


@objective(needs="distillation reference.final", per="token", problems=problems, parent="unlearned", start=corrupt)
def undo(forget: View, *, alpha: Fraction = 0.25, beta: NonNegativeFloat = 0.1) -> Tensor:
    """Unlearn, noise, distil on outputs: a damaged copy of an unlearned model learns from it (UNDO, arXiv 2506.06278).

    A second stage, which starts from an unlearned run: `ilu unlearn RUN --recipe quickstart-undo`. What that model says
    of the rows is kept first, as the last hidden states and the LM head (no second model is in memory); then its
    trained weights are shrunk and mixed with noise (`corrupt`), and the loss is KL(π_parent ‖ π_θ) at every scored
    token: of the forget rows here, as in the authors' language setting, whose text is half and half, and of general
    text by the retain term `kl`, which in their WMDP setting is all there is.

    The authors take α from 0.1 to 0.8 and β = 0.1 for small models, α = 0.25 and β = 0 for WMDP, thousands of steps of
    110 and more long rows at lr 9e-4 or 2e-5. Published: as robust as a model trained on filtered data, at 60 to 80 %
    of its cost, on synthetic tasks. Departures: only what is trained is damaged.

    Returns:
        [B], summed over the scored tokens.
    """
    from ilu_cli.retain.kl import kl

    return kl(forget)
