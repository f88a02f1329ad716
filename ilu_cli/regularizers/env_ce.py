from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import regularizer

if TYPE_CHECKING:
    from torch import Tensor


@regularizer(needs="nll")
def env_ce(values: Tensor) -> Tensor:
    """Control: plain cross-entropy on the environments. Is it invariance, or just training on their data?

    Args:
        values: [N], mean NLL per token of each environment.
    """
    return values.sum()
