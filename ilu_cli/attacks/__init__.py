"""Attempts to bring the forgotten back, one per file.

An attack is a generator: it changes the model of its `Attempt` and yields its strength (a number on the axis that
`strength` names) whenever evaluation should look. Training and weight transforms are alike in this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ilu_cli.data.sources import Dataset
    from ilu_cli.recipe.specs import TrainSpec


class Attempt(Protocol):
    """What an attack may use. `ilu_cli.workflows.attack` provides it."""

    def train(self, data: Dataset, spec: TrainSpec, batch: int, max_length: int) -> Iterator[int]:
        """Fine-tune the model on the data's targets, yielding the number of steps done, beginning with the first."""

    def test(self, data: Dataset, limit: int) -> None:
        """Measure the accuracy on a task's test rows as FA. Plain text has no answers, and so no FA."""


def quartiles(steps: int) -> list[int]:
    """The steps at which a fine-tuning run is looked at: 0, first quartile, median, final."""
    return sorted({0, max(1, round(steps / 4)), max(1, round(steps / 2)), steps})
