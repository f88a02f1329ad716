"""Where the lower layers of a model are all that a recipe needs (`train.loaded: needed`), and what is against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ilu_cli import registry
from ilu_cli.recipe.source import Key

if TYPE_CHECKING:
    from ilu_cli.recipe.schema import UnlearnRecipe

STATES = {
    "hidden", "states", "mlp", "centre", "reference.hidden", "reference.states", "reference.mlp", "reference.norm",
}  # fmt: skip
"""What a loss may read where nothing above the deepest of its layers is there."""


def loaded_problems(recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """What is impossible where only the layers up to the deepest that is read are loaded."""
    t = recipe.train
    if t.loaded == "all":
        return
    reads = {recipe.objective.name: registry.objective[recipe.objective.name].declared.needs}
    if recipe.retain:
        reads[recipe.retain.name] = registry.retain_term[recipe.retain.name].declared.needs
    further = [name for name, needs in reads.items() if not needs <= STATES]
    why = {
        f"{further[0] if further else ''} reads what comes after the layers": bool(further),
        "environments are read by the LM head": bool(recipe.regularizers),
        "a defence may read the LM head": bool(recipe.defences),
        "a budget is measured with the whole model": t.budget is not None,
        "healing runs the whole model": t.heal is not None,
        "an adapter lies in all layers": recipe.lora is not None,
        "which weights are trained must be said (train.params)": t.params is None,
        "what is not loaded is held in nothing (train.memory.frozen)": t.memory.frozen != "fp32",
    }
    yield from ((("train", "loaded"), f"needed: {text}; leave it out") for text, true in why.items() if true)
