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
class GradPenalty(Defence):
    """Gradient penalty: the forget term plus λ times the norm of its gradient (compared in arXiv 2502.05374).

    Adds `weight`·H·∇L/‖∇L‖, the gradient of λ‖∇L‖, L the forget term over the whole step and H its Hessian: an exact
    product in float32, one sequence at a time, so as dear as two to four more gradients. Through a custom kernel it is
    a finite difference, and by how much two steps of it disagree is logged as `hvp_error`. Other defences change the
    gradient of L itself, not this.

    The authors' public code takes the norm as a plain number, which has no gradient. Their λ is not transferable.
    """

    by_rows = True

    def __init__(self, *, weight: PositiveFloat = 1.0) -> None:
        self.weight, self.log = weight, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.gradients import norm
        from ilu_cli.engine.hessian import gradient_of, hessian_times

        value = compute()
        slope = gradient_of(grads, forget)
        length = norm(slope)
        self.log = {"forget gradient": length}
        if length:
            product, error = hessian_times(grads, forget, [g / length for g in slope])
            grads.add(product, self.weight)
            self.log |= {} if error is None else {"hvp_error": error}
        return value
