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
class Curvature(Defence):
    """Curvature penalty: the forget term plus λ‖∇L(θ + μv) − ∇L(θ)‖², v = ∇L/‖∇L‖ (compared in arXiv 2502.05374).

    L is the forget term over the whole step; divided by μ² the norm is about that of H·v, the curvature along the
    gradient. With v held fixed, as in CURE (arXiv 1811.09716), from which the penalty is, its gradient is
    2λ·(H(θ + μv) − H(θ))·d, d the difference of the two gradients and H the Hessian: two exact products in float32, one
    sequence at a time, and two more gradients, so as dear as six to ten more gradients of the forget term. Through a
    custom kernel the products are finite differences, and by how much two steps of one disagree is logged as
    `hvp_error`. Other defences change the gradient of L itself, not this.

    The authors' public code takes the norm as a plain number, which has no gradient: their λ (10) is of a penalty that
    did nothing, and λ and μ here are first guesses.
    """

    by_rows = True

    def __init__(self, *, weight: PositiveFloat = 1.0, mu: PositiveFloat = 0.01) -> None:
        self.weight, self.mu, self.log = weight, mu, {}

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        from ilu_cli.engine.gradients import dot, norm
        from ilu_cli.engine.hessian import gradient_of, hessian_times

        value = compute()
        here = gradient_of(grads, forget)
        length = norm(here)
        if not length:
            self.log = {"curvature": 0.0}
            return value
        with grads.shifted(here, self.mu / length):
            d = [b - a for a, b in zip(here, gradient_of(grads, forget))]
            there, far = hessian_times(grads, forget, d)
        now, near = hessian_times(grads, forget, d)
        grads.add([b - a for a, b in zip(now, there)], 2 * self.weight)
        self.log = {"curvature": dot(d, d)}
        if errors := [e for e in (far, near) if e is not None]:
            self.log["hvp_error"] = max(errors)
        return value
