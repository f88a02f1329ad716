from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term, Vector


@defence()
class GradPenalty(Defence):
    """Gradient penalty: the forget term plus λ times the norm of its gradient (compared in arXiv 2502.05374).

    Adds `weight`·H·∇L/‖∇L‖, the gradient of λ‖∇L‖, L the forget term over the whole step and H its Hessian. The product
    is a central difference in float32 whose step is searched until two agree, at the cost of four more gradients or a
    few times as many; by how much they do not is logged as `hvp_error`. Other defences change L's own gradient, not
    this.

    The authors' public code takes the norm as a plain number, which has no gradient. Their λ is not transferable.
    """

    def __init__(self, *, weight: PositiveFloat = 1.0) -> None:
        self.weight, self.log = weight, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.gradients import dot
        from ilu_cli.engine.hessian import by_differences

        def plain() -> Vector:
            grads.accumulate(forget, precision="fp32")
            return grads.whole()

        value = compute()
        with grads.aside():
            slope = plain()
            norm, error = math.sqrt(dot(slope, slope)), 0.0
            if norm:
                product, error = by_differences(grads, plain, [g / norm for g in slope])
                grads.add(product, self.weight)
        self.log = {"forget gradient": norm, "hvp_error": error}
        return value
