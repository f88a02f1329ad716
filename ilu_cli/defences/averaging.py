from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, PositiveInt

from ilu_cli.defences import Defence, Resumable
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """A mean that would begin after the last step, or of steps that are taken back."""
    if own.start + own.every > recipe.train.steps:
        yield (*key, "start"), f"there is nothing to average within {recipe.train.steps} steps"
    budget = recipe.train.budget
    if budget and budget.benchmark and budget.every > 1:
        yield (*key, "name"), "a budget takes steps back that are in the mean already: set train.budget.every to 1"


@defence(problems=problems)
class Averaging(Defence):
    """Stochastic weight averaging (arXiv 1803.05407; compared in arXiv 2502.05374).

    The saved weights are the mean of those after each `every`-th step beyond `start`. Training itself is unchanged.
    """

    by_rows = True
    vectors = 1  # the mean

    def __init__(self, *, start: NonNegativeInt = 20, every: PositiveInt = 5) -> None:
        self.start, self.every, self.log = start, every, {}
        self.count, self.mean = 0, list[Any]()

    def after_step(self, grads: Gradients) -> None:
        if grads.step <= self.start or (grads.step - self.start) % self.every:
            return
        params: list[Tensor] = [p.detach() for p in grads.params]
        self.count += 1
        if self.count == 1:
            self.mean = [p.clone() for p in params]
        for mean, p in zip(self.mean, params):
            mean.lerp_(p, 1 / self.count)

    def finish(self, grads: Gradients) -> bool:
        for p, mean in zip(grads.params, self.mean):
            p.data.copy_(mean)
        return bool(self.mean)

    def state(self) -> Resumable:
        return {"count": self.count, "mean": self.mean}

    def load(self, state: Resumable) -> None:
        self.count, self.mean = state["count"], state["mean"]
