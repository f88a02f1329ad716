"""Weights that are shares: λ so that a part's gradient is so many times as long as the forget term's."""

from __future__ import annotations

from dataclasses import dataclass, field

from ilu_cli.errors import RunFailed

KEPT = 0.9
FORGET = "forget"


@dataclass
class Lengths:
    """Running lengths of the gradients of a step's parts, each at weight 1: m ← 0.9·m + 0.1·‖g‖, m = ‖g‖ at first.

    They are of the whole step, over all processes, and a state keeps them.
    """

    means: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def see(self, part: str, length: float) -> None:
        """The length in this step."""
        self.last[part] = length
        self.means[part] = KEPT * self.means.get(part, length) + (1 - KEPT) * length

    def weight(self, part: str, share: float) -> float:
        """λ = share · ‖∇forget‖ / ‖∇part‖, of the running lengths.

        Raises:
            RunFailed: if the part has had no gradient so far.
        """
        if share == 0:
            return 0.0
        if not self.means[part]:
            raise RunFailed(
                f"the gradient of {part} is 0, so no weight makes it {share:g} of the forget term's",
                hint="look at its data and keys, or give it a number as weight",
            )
        return share * self.means[FORGET] / self.means[part]
