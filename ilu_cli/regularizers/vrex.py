from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from ilu_cli.engine.environments import Environments


@regularizer(least=2)
def vrex(envs: Environments) -> float:
    """Variance of the risks across environments, V-REx (arXiv 2003.00688).

    Σ_i a_i (R_i − R̄)² / Σ a with R_i the mean NLL per token of environment i and R̄ their weighted mean; the paper has
    equal weights. Its mean-risk term is `env_ce`.
    """
    share = envs.weights / envs.weights.sum()
    return envs.of_means("nll", lambda risk: (share * (risk - (share * risk).sum()).square()).sum())
