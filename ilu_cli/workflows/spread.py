"""What a sharded launch cannot do yet is refused in the plan, by the key that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ilu_cli import registry
from ilu_cli.engine.accel import backend
from ilu_cli.errors import UsageError
from ilu_cli.models.hold import hold
from ilu_cli.models.load import select_params
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.workflows.plan import StreamPlan

OPTIMIZERS = ("adamw", "sgd", "momentum")  # step every weight by itself, so that each process can step its rows


def check_unlearn(recipe: UnlearnRecipe) -> None:
    """Look at what a recipe asks of a launch whose processes have a part of the model each.

    Raises:
        UsageError: if it cannot do that.
    """
    if backend().mesh is not None:
        for key, what in against_unlearn(recipe):
            _refuse(key, what)


def against_unlearn(recipe: UnlearnRecipe) -> Iterator[tuple[str, str]]:
    """Keys of a recipe that a sharded launch cannot do, and why."""
    yield from against_training(recipe.train, "train")
    if recipe.train.loaded != "all":
        yield "train.loaded", f"{recipe.train.loaded} is for one process"
    for i, d in enumerate(recipe.defences):
        if not registry.defence[d.name].obj.by_rows:
            yield f"defences.{i}.name", f"{d.name} may read whole matrices"


def check_attack(recipe: AttackRecipe) -> None:
    """The same of an attack, before it is priced.

    Raises:
        UsageError: if it cannot do that.
    """
    if backend().mesh is not None:
        for key, what in against_attack(recipe):
            _refuse(key, what)


def against_attack(recipe: AttackRecipe) -> Iterator[tuple[str, str]]:
    """What of an attack itself a sharded launch cannot do, and why."""
    declared = registry.attack[recipe.attack.name].declared
    if declared.access not in ("training", "prompts"):
        yield "attack.name", f"{recipe.attack.name} reads or changes whole {declared.access}"


def check_attack_training(spec: TrainSpec) -> None:
    """The same of what a training attack asks for.

    Raises:
        UsageError: if it cannot do that.
    """
    if backend().mesh is not None:
        for key, what in against_training(spec, "attack"):
            _refuse(key, what)


def note_idle(streams: Iterable[StreamPlan], accumulation: int, note: Callable[[str], None]) -> None:
    """Say of which streams a step has fewer rows than there are processes with a part of the model."""
    b = backend()
    for s in (p.stream for p in (streams if b.mesh is not None else ())):
        if s.batch < b.world * accumulation:
            places = f"{b.world} processes" + (f" × {accumulation} micro-batches" if accumulation > 1 else "")
            note(f"{s.name}: {s.batch} rows a step for {places}: where there is none, one is run that does not count")


def against_training(spec: TrainSpec, key: str) -> Iterator[tuple[str, str]]:
    """The same of how weights are stepped; `key` is where a recipe says it."""
    memory = spec.memory
    if spec.optimizer not in OPTIMIZERS:
        yield f"{key}.optimizer", f"{spec.optimizer} steps whole matrices"
    if memory.frozen == "nf4":
        yield f"{key}.memory.frozen", "nf4 is made of whole matrices"
    if memory.optimizer_bits != 32:
        yield f"{key}.memory.optimizer_bits", "moments in 8 bits are made of whole matrices"
    if memory.offload is not None:
        yield f"{key}.memory.offload", "the launch moves weights and moments itself (fsdp_offload_params)"


def narrowing(memory: MemorySpec, patterns: list[str] | None, adapter: bool, key: str) -> Callable[[Any], None]:
    """Puts matrices that are not trained into bf16 before a model is spread: afterwards each process has some rows."""

    def narrow(model: Any) -> None:
        hold(model, memory.frozen, () if adapter else select_params(model, patterns, key).values())

    return narrow


def _refuse(key: str, what: str) -> None:
    raise UsageError(
        f"{key}: {what}, and in a sharded launch each process has a part of the model",
        hint="leave it out, or launch with --multi_gpu",
    )
