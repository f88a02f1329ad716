from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.loop import Trainer


@defence()
class SAM(Defence):
    """Sharpness-aware minimisation of the forget term (arXiv 2502.05374, eq. 6).

    The forget gradient is taken at θ + ρ·g/‖g‖, g the forget gradient at θ over the whole step; retain term and
    regularisers keep theirs at θ. The authors use ρ = 0.01.
    """

    def __init__(self, *, rho: PositiveFloat = 0.01) -> None:
        self.rho, self.log = rho, {}

    def gradient(self, trainer: Trainer, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.environments import put, shifted, take

        params = list(trainer.params.values())
        before = take(params)
        value = compute()
        ascent, norm = trainer.take_gradient()
        with shifted(params, ascent, self.rho / norm if norm else 0.0):
            compute()
        put(params, before, 1.0)
        return value
