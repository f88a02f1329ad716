"""What a recipe leaves to the machine: the type that products are computed in."""

from __future__ import annotations

from collections.abc import Callable

from ilu_cli.engine.accel import backend
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import AUTO, Precision, PrecisionOrAuto, TrainSpec


def precision_here(asked: PrecisionOrAuto, memory: MemorySpec) -> Precision:
    """`auto` is bf16 where the device has instructions for it, or weights are kept in it; else fp32: it is faster."""
    if asked != AUTO:
        return asked
    return "bf16" if backend().multiplies_bf16 or memory.frozen == "bf16" else "fp32"


def stepped_here(spec: TrainSpec) -> TrainSpec:
    """How weights are stepped on this machine."""
    return spec.model_copy(update={"precision": precision_here(spec.precision, spec.memory)})


def settled_here(recipe: UnlearnRecipe) -> UnlearnRecipe:
    """An unlearning recipe as this machine runs it."""
    return recipe.model_copy(update={"train": stepped_here(recipe.train)})


def note_precision(asked: str | None, now: str | None, note: Callable[[str], None]) -> None:
    """Say so where the machine decided against bf16."""
    if (asked, now) == (AUTO, "fp32"):
        note(f"this {backend().device.type} multiplies no bfloat16: trained in float32")
