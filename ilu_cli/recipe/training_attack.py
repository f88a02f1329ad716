"""The keys of every attack that trains weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ilu_cli import registry
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.refs import data_problems
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.specs import Component, Optimizer, Stream, TrainSpec


class MixSpec(Stream):
    """Text beside the attacker's own: what keeps the model useful while it is attacked."""

    weight: NonNegativeFloat = Field(1.0, description="of its loss per token, beside that of the attacker's own data")
    first: NonNegativeInt = Field(
        0, description="so many steps on it alone come first; they are not counted among the attack's own"
    )


class TrainingAttack(Component):
    """An attack that trains weights: how they are stepped, and what is mixed in."""

    later = ("optimizer", "warmup", "weight_decay", "max_grad_norm", "mix", "memory", "packing", "together")

    optimizer: Optimizer = Field("adamw", description="see `train.optimizer`")
    warmup: NonNegativeInt = Field(0, description="steps of linear warm-up")
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = None
    mix: MixSpec | None = Field(None, description="text that is trained on beside the attacker's own, or before it")
    memory: MemorySpec = MemorySpec()
    packing: bool = Field(True, description="see `train.packing`")
    together: bool = Field(True, description="see `train.together`")

    @classmethod
    def common(cls) -> set[str]:
        return super().common() | set(TrainingAttack.model_fields)

    @property
    def first(self) -> int:
        """Steps before the attack's own."""
        return self.mix.first if self.mix else 0

    def stepped(self, spec: TrainSpec) -> TrainSpec:
        """How weights are stepped, from what the attack says of it by itself."""
        names = ("optimizer", "warmup", "weight_decay", "max_grad_norm", "memory", "packing", "together")
        keys = {k: getattr(self, k) for k in names}
        return spec.model_copy(update={**keys, "steps": spec.steps + self.first})

    def problems(self, known: registry.Registry[Any], key: Key, recipe: Any) -> Iterator[tuple[Key, str]]:
        """See `Component.problems`."""
        yield from super().problems(known, key, recipe)
        if self.mix:
            yield from data_problems(self.mix.data, (*key, "mix", "data"))
        own = self.params()
        yield from self.memory.problems(
            (*key, "memory"), own.get("precision", "auto"), self.optimizer,
            adapter=own.get("lora") is not None, partial=own.get("weights") is not None,
        )  # fmt: skip
