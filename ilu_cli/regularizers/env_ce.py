from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from ilu_cli.engine.environments import Environments


@regularizer(least=1)
def env_ce(envs: Environments) -> float:
    """Control: plain cross-entropy on the environments. Is it invariance, or just training on their data?

    Σ_i a_i · mean NLL per token of environment i.
    """
    return envs.of_means("nll", lambda risk: (envs.weights * risk).sum())
