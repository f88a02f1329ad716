from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term


@defence()
class Smoothing(Defence):
    """Random smoothing of the forget term over Gaussian noise on the weights (compared in arXiv 2502.05374).

    The forget gradient is the mean over `samples` draws of θ + σ·n, n standard normal per trained weight, the same on
    every process.
    """

    by_rows = True
    moves = True
    vectors = 2  # the noise and the weights

    def __init__(self, *, sigma: PositiveFloat = 0.001, samples: PositiveInt = 1) -> None:
        self.sigma, self.samples, self.log = sigma, samples, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        import torch

        from ilu_cli.data.sampling import seed_of
        from ilu_cli.models.sharded import like

        values = []
        with grads.aside():
            for k in range(self.samples):
                generator = torch.Generator(grads.backend.device)
                generator.manual_seed(seed_of(grads.seed, "smoothing", grads.step, k))
                noise = [
                    like(torch.randn(p.shape, generator=generator, device=generator.device, dtype=p.dtype), p)
                    for p in grads.params
                ]
                with grads.shifted(noise, self.sigma):
                    values.append(compute())
            grads.put(grads.take(), 1 / self.samples)
        return torch.stack(values).mean()
