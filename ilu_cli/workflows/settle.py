"""What a recipe leaves to the model, filled in: the layer that is read, the weights that are trained."""

from __future__ import annotations

from typing import Any

from ilu_cli.errors import UsageError
from ilu_cli.models.choose import layer_for, params_for
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import dotted
from ilu_cli.recipe.specs import AUTO, AUTO_PARAMS
from ilu_cli.runs.results import Row
from ilu_cli.workflows.training import layers_of


def is_open(recipe: UnlearnRecipe) -> bool:
    """Whether a recipe leaves something to the model."""
    return AUTO in (recipe.objective.params().get("layer"), *(recipe.train.params or ()))


def settled(recipe: UnlearnRecipe, model: Any) -> UnlearnRecipe:
    """The recipe with numbers and patterns in place of `auto`; one that has none is returned as it is.

    `train.params: auto` is, of an objective that reads layers, what writes the MLP's output in each and in the two
    below (`ilu_cli.models.choose`); of another, all weights. With an adapter it is nothing beside the adapter.

    Args:
        recipe: of an unlearning run.
        model: which may be without its weights.

    Raises:
        UsageError: if what is chosen does not go with the rest of the recipe, or the model has no such weights.
    """
    if not is_open(recipe):
        return recipe
    objective, train = recipe.objective, recipe.train
    if objective.params().get("layer") == AUTO:
        objective = objective.model_copy(update={"layer": layer_for(model.config.num_hidden_layers)})
    if train.params == AUTO_PARAMS:
        read = layers_of(objective)
        train = train.model_copy(update={"params": params_for(model, read) if read and not recipe.lora else None})
    found = recipe.model_copy(update={"objective": objective, "train": train})
    for key, message in found.problems():
        raise UsageError(f"{dotted(key)}: {message}", hint=f"chosen for this model: {told(chosen(recipe, found))}")
    return found


def chosen(asked: UnlearnRecipe, now: UnlearnRecipe) -> Row:
    """What was filled in, by key."""
    pairs = {
        "objective.layer": (asked.objective.params().get("layer"), now.objective.params().get("layer")),
        "train.params": (asked.train.params, now.train.params),
    }
    return {key: after for key, (before, after) in pairs.items() if before != after}


def told(found: Row) -> str:
    """The same in words."""
    return ", ".join(f"{key} {'all' if value is None else value}" for key, value in found.items())


def settled_for(recipe: UnlearnRecipe, subject: Subject) -> UnlearnRecipe:
    """`settled`, for a model on disk."""
    from ilu_cli.models.load import checked_model

    return settled(recipe, checked_model(subject)) if is_open(recipe) else recipe
