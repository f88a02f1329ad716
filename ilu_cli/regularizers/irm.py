from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ilu_cli.engine.environments import Environments
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """Halves of a batch where the variant has no such estimator, or one sequence that cannot be halved."""
    if own.estimator == "cross_halves" and own.variant != "logit":
        yield (*key, "estimator"), "cross_halves is for the logit variant"
    if own.estimator == "cross_halves" and own.batch < 2:
        yield (*key, "batch"), "cross_halves needs at least 2 sequences"


@regularizer(least=1, problems=problems)
def irm(
    envs: Environments,
    *,
    variant: Literal["logit", "param_scale", "grad_norm"] = "logit",
    estimator: Literal["global", "cross_halves"] = "global",
) -> float:
    """Invariance penalty of ILU: Σ_i a_i ‖∇_{w|w=1} ℓ_i(w∘θ)‖² (our reading of arXiv 2506.01339, eq. 4).

    `variant` says what w is:

    - `logit`, one scalar on the logits (IRMv1 read literally, arXiv 1907.02893, eq. 4). The derivative at w = 1 is
      D_i = mean_t(NLL_t − H_t), so that the penalty is D_i² and its gradient 2·D_i·∇D_i: closed form, first order. A
      model can satisfy it by re-tempering its logits alone; therefore D is logged for each environment.
    - `param_scale`, one scalar on all trained weights: ⟨θ, ∇ℓ_i⟩², with gradient 2⟨θ, ∇ℓ_i⟩(∇ℓ_i + Hθ).
    - `grad_norm`, every weight its own w: ‖∇ℓ_i‖², with gradient 2H∇ℓ_i.

    Hessian products are exact, by differentiating twice in float32 with attention written out, one sequence at a time:
    as dear as two to four more gradients of the environment a step. Through a custom kernel they are finite differences
    whose step is searched until two agree; by how much they do not is logged as `hvp_error`.

    `estimator`, for `logit`: `global` squares D_i of the whole batch, which on average exceeds the square of the true
    D by the variance of the estimate. `cross_halves` multiplies the D of two disjoint halves of the batch's sequences;
    that is unbiased, and may be negative.
    """
    if variant == "logit":
        if estimator == "cross_halves":
            return envs.of_means("gap", lambda d: (envs.weights * d[:, 0] * d[:, 1]).sum(), halves=True)
        return envs.of_means("gap", lambda d: (envs.weights * d.square()).sum())

    from ilu_cli.engine.gradients import dot

    value, theta = 0.0, envs.parameters()
    for i, (gradient, weight) in enumerate(zip(envs.gradients(), envs.weights.tolist())):
        if variant == "grad_norm":
            value += weight * dot(gradient, gradient)
            envs.add([2 * weight * hg for hg in envs.hessian_times(i, gradient)])
        else:
            slope = dot(theta, gradient)
            value += weight * slope**2
            envs.add([2 * weight * slope * (g + ht) for g, ht in zip(gradient, envs.hessian_times(i, theta))])
    return value
