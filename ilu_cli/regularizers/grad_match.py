from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from ilu_cli.engine.environments import Environments


@regularizer(least=2)
def grad_match(envs: Environments) -> float:
    """Gradient matching: Σ_i a_i ‖∇ℓ_i − ḡ‖² / Σ a, their variance (IGA, arXiv 2008.01883).

    ḡ is the weighted mean of the gradients; the paper has equal weights. The gradient is 2 Σ_i a_i H_i(∇ℓ_i − ḡ) / Σ a
    (what comes of ḡ cancels), with exact Hessian products.
    """
    from ilu_cli.engine.hessian import dot

    share = (envs.weights / envs.weights.sum()).tolist()
    gradients = envs.gradients()
    mean = [sum(a * g for a, g in zip(share, column)) for column in zip(*gradients)]
    value = 0.0
    for i, (gradient, a) in enumerate(zip(gradients, share)):
        apart = [g - m for g, m in zip(gradient, mean)]
        value += a * dot(apart, apart)
        envs.add([2 * a * h for h in envs.hessian_times(i, apart)])
    return value
