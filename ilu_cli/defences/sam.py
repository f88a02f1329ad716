from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term


@defence()
class SAM(Defence):
    """Sharpness-aware minimisation of the forget term (arXiv 2502.05374, eq. 6).

    The forget gradient is taken at θ + ρ·g/‖g‖, g the forget gradient at θ over the whole step; retain term and
    regularisers keep theirs at θ. The authors use ρ = 0.01.
    """

    by_rows = True
    moves = True
    vectors = 2  # the ascent and the weights

    def __init__(self, *, rho: PositiveFloat = 0.01) -> None:
        self.rho, self.log = rho, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.gradients import norm

        with grads.aside():
            value = compute()
            ascent = grads.whole()
            with grads.shifted(ascent, self.rho / (norm(ascent) or 1.0)):
                compute()
        return value
