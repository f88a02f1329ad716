"""What makes unlearning robust by changing how the forget gradient is taken, one per file.

A defence is a subclass of `Defence`, with its recipe keys as keyword-only parameters of `__init__`. Several may be used
together; each encloses those named before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term
    from ilu_cli.engine.stream import TrainStream
    from ilu_cli.engine.view import View

Resumable = dict[str, Any]
"""Tensors and numbers that a resumed run needs."""


class Defence:
    """Base: does nothing. `log` is shown and written with the losses of the step.

    `by_rows`: whether it works where each process has some rows of every weight (FSDP): sums, products and steps do,
    what reads a whole matrix does not. Where it is not said, such a launch is refused. `mlps`: whether
    `train.params: auto` is the MLPs' matrices of all layers, as its authors train them. `moves`: whether it computes
    the forget gradient at other weights than those of the step. `vectors`: how many copies of all that is trained it
    holds at most while gradients are taken, beside the weights, the optimiser's moments and the gradient; None: that is
    not known, and the plan says so.
    """

    log: dict[str, float]
    vectors: ClassVar[int | None] = None
    by_rows: ClassVar[bool] = False
    mlps: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    def check(self, forget: TrainStream) -> None:
        """Look at the rows of the forget data, in the plan.

        Raises:
            UsageError: if they do not serve.
        """

    def values(self, values: Callable[[View], Tensor]) -> Callable[[View], Tensor]:
        """Change what the forget term computes on each micro-batch."""
        return values

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        """Add the gradient of the forget term to the parameters; `compute()` does so where the weights are now.

        Returns:
            This process's share of the forget term's value, as `compute()` does.
        """
        return compute()

    def held(self, trained: Sequence[Sequence[int]]) -> tuple[int, int] | None:
        """How many numbers (float32) that are, of weights of these shapes: before the first step, and at each."""
        most = None if self.vectors is None else self.vectors * sum(map(math.prod, trained))
        return None if most is None else (most, most)

    def steps(self, stream: TrainStream) -> int:
        """How many steps' rows of the forget data are read, where that is more than the recipe's."""
        return 0

    def after_step(self, grads: Gradients) -> None:
        """The weights have been stepped; `grads.step` counts the step that is over from 1."""

    def finish(self, grads: Gradients) -> bool:
        """Training is over; the weights are saved next. Returns whether they are others now."""
        return False

    def state(self) -> Resumable:
        """What a resumed run needs, as tensors and numbers."""
        return {}

    def load(self, state: Resumable) -> None:
        """Take over what `state` returned."""
