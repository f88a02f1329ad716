from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.registry import retain_term

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@retain_term(needs="nll", per="token")
def nll(retain: View) -> Tensor:
    """Cross-entropy on the retain data.

    Returns:
        [B], summed over the scored tokens.
    """
    return retain.nll
