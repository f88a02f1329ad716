"""What a training attack is going to train, found out without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ilu_cli import registry
from ilu_cli.attacks import Attempt
from ilu_cli.benchmarks import Row
from ilu_cli.data.sources import Dataset
from ilu_cli.engine.accel import backend
from ilu_cli.engine.optimizers import check
from ilu_cli.models.dtypes import DTYPES
from ilu_cli.models.load import add_adapter, trained_params
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.specs import Component, Form, LoraSpec, TrainSpec
from ilu_cli.recipe.training_attack import TrainingAttack
from ilu_cli.runs.results import Data
from ilu_cli.workflows.attack.fed import fed
from ilu_cli.workflows.attack.seen import Seen
from ilu_cli.workflows.attack.sides import sides
from ilu_cli.workflows.estimate import estimate
from ilu_cli.workflows.evaluate import Evaluation
from ilu_cli.workflows.moments import OnDisk
from ilu_cli.workflows.passes import Passing, Shape, joined
from ilu_cli.workflows.plan import StreamPlan, Training, check_streams


class _NeedsModel(Exception):
    """An attack asked for what only a loaded model has."""


@dataclass
class TrainingAsked:
    """A training that an attack asked for. Of its streams the first is its own, then comes what is mixed in."""

    streams: list[StreamPlan]
    spec: TrainSpec
    lora: LoraSpec | None

    @property
    def datasets(self) -> tuple[list[Dataset], list[Dataset]]:
        """The attack's own, and those mixed in."""
        return self.streams[0].datasets, [d for s in self.streams[1:] for d in s.datasets]

    def records(self) -> list[Data]:
        """The manifest's record of each dataset."""
        return [record for s in self.streams for record in s.records()]

    def training(self, model: Any, priced: Priced) -> Training:
        """How much of the model is trained; an adapter is added to it.

        Raises:
            UsageError: if the weights or the tokens do not fit the model.
        """
        streams = [s.stream for s in self.streams]
        check_streams(model, streams, priced.tokenizer)
        stored = OnDisk.of(priced.subject, model, DTYPES["fp32"])
        if self.lora is not None:
            add_adapter(model, self.lora, priced.seed)
        params = trained_params(model, self.spec.params, self.lora is not None, "attack.weights")
        trainable = sum(p.numel() for p in params.values())
        parts = backend().world * self.spec.accumulation
        passes = [Passing.of(s.name, Shape.of(s), parts) for s in streams]
        if self.spec.together and self.spec.packing:
            passes = joined(passes, [s.name for s in streams])
        peak = estimate(model, list(params.values()), passes, self.spec, 0, stored).peak
        return Training(self.spec.steps, trainable, peak, backend().memory()[0])


@dataclass
class Priced:
    """An `Attempt` that trains nothing, and remembers what it was asked to train."""

    environments: Seen
    subject: Subject
    tokenizer: Any
    seed: int
    evaluation: Callable[[], Evaluation]
    keys: TrainingAttack | None = None
    asked: TrainingAsked | None = None

    def admit(self, data: Dataset, *, test: bool = False) -> Dataset:
        return self.environments.without(data)[0]

    def train(
        self, data: Sequence[Dataset], spec: TrainSpec, batch: int, form: Form, lora: LoraSpec | None = None
    ) -> Iterator[int]:
        streams, spec = fed("attack", data, spec, batch, form, self.keys, self)
        check(spec)
        self.asked = TrainingAsked(streams, spec, lora)
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
    priced.keys = attack if isinstance(attack, TrainingAttack) else None
    try:
        list(registry.attack[attack.name].obj(priced, **attack.params()))
    except _NeedsModel as reason:
        return str(reason)
    return ""
