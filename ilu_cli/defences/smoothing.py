from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.loop import Trainer


@defence()
class Smoothing(Defence):
    """Random smoothing of the forget term over Gaussian noise on the weights (compared in arXiv 2502.05374).

    The forget gradient is the mean over `samples` draws of θ + σ·n, n standard normal per trained weight, the same on
    every process.
    """

    def __init__(self, *, sigma: PositiveFloat = 0.001, samples: PositiveInt = 1) -> None:
        self.sigma, self.samples, self.log = sigma, samples, {}

    def gradient(self, trainer: Trainer, compute: Callable[[], Tensor]) -> Tensor:
        import torch

        from ilu_cli.data.sampling import seed_of
        from ilu_cli.engine.environments import put, shifted, take

        params = list(trainer.params.values())
        before = take(params)
        values = []
        for k in range(self.samples):
            generator = torch.Generator(params[0].device)
            generator.manual_seed(seed_of(trainer.seed, "smoothing", trainer.step, k))
            noise = [torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype) for p in params]
            with shifted(params, noise, self.sigma):
                values.append(compute())
        smoothed = take(params)
        put(params, smoothed, 1 / self.samples)
        put(params, before, 1.0)
        return torch.stack(values).mean()
