"""What a training attack is going to train, found out without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ilu_cli import registry
from ilu_cli.attacks import Attempt
from ilu_cli.benchmarks import Row
from ilu_cli.data.sources import Dataset
from ilu_cli.recipe.specs import Component, Form, LoraSpec, TrainSpec
from ilu_cli.workflows.attack.seen import Seen
from ilu_cli.workflows.attack.sides import sides
from ilu_cli.workflows.evaluate import Evaluation
from ilu_cli.workflows.plan import StreamPlan, stream_of


class _NeedsModel(Exception):
    """An attack asked for what only a loaded model has."""


@dataclass
class Priced:
    """An `Attempt` that trains nothing, and remembers what it was asked to train."""

    environments: Seen
    tokenizer: Any
    seed: int
    evaluation: Callable[[], Evaluation]
    asked: tuple[StreamPlan, TrainSpec, LoraSpec | None] | None = None

    def admit(self, data: Dataset, *, test: bool = False) -> Dataset:
        return self.environments.without(data)[0]

    def train(
        self, data: Sequence[Dataset], spec: TrainSpec, batch: int, form: Form, lora: LoraSpec | None = None
    ) -> Iterator[int]:
        self.asked = (stream_of("attack", list(data), batch, form, self.seed, self.tokenizer), spec, lora)
        return iter(())

    def parted(self, share: float, name: str) -> dict[str, tuple[Dataset, list[Row]]]:
        return sides(self.evaluation(), share, f"{name}-{self.seed}")

    def ask(self, items: dict[str, list[Row]]) -> None:
        """Nothing is asked."""

    def __getattr__(self, name: str) -> Any:
        if name in vars(Attempt):
            raise _NeedsModel(name)
        raise AttributeError(name)


def price(attack: Component, priced: Priced) -> str:
    """Let a training attack ask for its training. What it asks for after that, and only a model has, or nothing."""
    try:
        list(registry.attack[attack.name].obj(priced, **attack.params()))
    except _NeedsModel as reason:
        return str(reason)
    return ""
