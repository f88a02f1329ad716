"""What a recipe leaves to the model, filled in: the layer that is read, the weights that are trained, where tasks come
from, and what is asked by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.models.choose import layer_for, mlp_params, params_for
from ilu_cli.models.maps import mlp_of
from ilu_cli.models.names import first_place
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import Subject, is_builtin
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.schema import Recipe, UnlearnRecipe
from ilu_cli.recipe.source import dotted
from ilu_cli.recipe.sourced import sourced
from ilu_cli.recipe.specs import AUTO, AUTO_PARAMS
from ilu_cli.runs.results import Row
from ilu_cli.workflows.alternatives import with_made
from ilu_cli.workflows.attack.seen import Written
from ilu_cli.workflows.evaluate import asking
from ilu_cli.workflows.passes import layers_of

R = TypeVar("R", bound=Recipe)
E = TypeVar("E", bound=EvalSpec)


def is_open(recipe: UnlearnRecipe) -> bool:
    """Whether a recipe leaves something to the model."""
    return AUTO in (recipe.objective.params().get("layer"), *(recipe.train.params or ()))


def settled(recipe: UnlearnRecipe, model: Any) -> UnlearnRecipe:
    """The recipe with numbers and patterns in place of `auto`; one that has none is returned as it is.

    `train.params: auto` is, of an objective that reads layers, what writes the MLP's output in each and in the two
    below (`ilu_cli.models.choose`); of another, all weights, or the MLPs' matrices of all layers where a defence works
    on those. With an adapter it is nothing beside the adapter.

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
        train = train.model_copy(update={"params": _trained(recipe, layers_of(objective), model)})
    found = recipe.model_copy(update={"objective": objective, "train": train})
    for key, message in found.problems():
        raise UsageError(f"{dotted(key)}: {message}", hint=f"chosen for this model: {told(chosen(recipe, found))}")
    return found


def _trained(recipe: UnlearnRecipe, read: Sequence[int], model: Any) -> list[str] | None:
    if recipe.lora:
        return None
    if any(registry.defence[d.name].obj.mlps for d in recipe.defences):
        return mlp_params(model)
    return params_for(model, read) if read else None


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


def check_parent(recipe: UnlearnRecipe, parent: Subject) -> None:
    """Check that a second stage has a first.

    Raises:
        UsageError: if the model that it starts from is none that an unlearning run made.
    """
    name = recipe.objective.name
    if registry.objective[name].declared.parent is None or (parent.run and parent.run.manifest.command == "unlearn"):
        return
    raise UsageError(
        f"model.ref: {name} is a second stage, and {parent.label} is not the model of an unlearning run",
        hint=f"unlearn first, then `ilu unlearn RUN --method {name}` with that run",
    )


def settled_for(recipe: UnlearnRecipe, subject: Subject) -> UnlearnRecipe:
    """All of a recipe that this model is to decide, for a model on disk."""
    from ilu_cli.models.load import checked_model

    recipe, _ = with_made(followed(recipe, subject), subject)
    return settled(recipe, checked_model(subject)) if is_open(recipe) else recipe


def followed(recipe: R, subject: Subject) -> R:
    """The recipe with its tasks from where they belong to the model.

    With a built-in model, and all that descends from it, a task is its built-in stand-in; with any other the published
    dataset, from the data root or the hub. What names its source keeps it.
    """
    return recipe if is_builtin(subject) else sourced(recipe, "hub")


def fitting(spec: E, forgotten: Sequence[Row]) -> E:
    """What is asked where nobody said what: of the default benchmarks those of utility, and all that ask for what the
    model was to forget. Without forget data, and where benchmarks are given, the spec as it is.

    Args:
        spec: whose benchmarks may be given.
        forgotten: the forget data of the model's lineage, as recipes name them.
    """
    names = {d["name"] for d in forgotten}
    if not names or "benchmarks" in spec.model_fields_set:
        return spec
    kept = [n for n in spec.named if registry.benchmark[n].obj.role != "forget" and n not in names]
    found = [*asking(names), *kept]
    return spec if found == spec.named else spec.model_copy(update={"benchmarks": found})


def forgotten_by(recipes: Sequence[Written]) -> list[Row]:
    """The forget data of unlearning recipes, as they are written."""
    return [d for recipe in recipes for d in recipe["forget"]["data"]]


def first_trained(recipe: UnlearnRecipe, model: Any, names: list[str]) -> int:
    """Check the layers that the recipe names; return the first one that is trained (0: embeddings too).

    Raises:
        UsageError: if one does not exist or has no MLP to read, or nothing at or below the objective's is trained.
    """
    depth = model.config.num_hidden_layers
    named = {f"defences.{i}.layer": d.params().get("layer") for i, d in enumerate(recipe.defences)}
    named["objective.layer"] = recipe.objective.params().get("layer")
    read = layers_of(recipe.objective)
    named |= {f"objective.layers.{i}": n for i, n in enumerate(recipe.objective.params().get("layers") or ())}
    for key, n in named.items():
        if n is not None and n >= depth:
            raise UsageError(f"{key}: {n} does not exist, the model has layers 0 to {depth - 1}")
    if "mlp" in registry.objective[recipe.objective.name].declared.needs:
        parts = parts_of(model)
        for n in read:
            mlp_of(parts.layers[n], parts.width, n)
    first = first_place(model, names)
    if read and first > min(read):
        key = "lora" if recipe.lora else "train.params"
        raise UsageError(
            f"{key}: no trained weight lies at or below layer {min(read)}, so nothing can be unlearned there"
        )
    return max(first, 0)
