"""What an attack asks of the model is there: layers, room in its context, matrices, the original's shapes."""

from __future__ import annotations

from typing import Any

from ilu_cli import registry
from ilu_cli.engine.scoring import context_of
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.load import empty_model
from ilu_cli.models.matrices import matrices
from ilu_cli.models.parts import decoder_layers
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.workflows.attack.others import check_others


def check_model(recipe: AttackRecipe, model: Any, subject: Subject, original: Subject) -> None:
    """Check that an attack can do to the model what it does.

    Raises:
        UsageError: if a layer that it names does not exist, or a weight cannot be changed matrix by matrix.
        UnavailableError: if it looks at the original, and that has other weights.
    """
    declared, depth = registry.attack[recipe.attack.name].declared, len(decoder_layers(model))
    for n in recipe.attack.params().get("layers") or []:
        if n >= depth:
            raise UsageError(f"attack.layers: {n} does not exist, the model has layers 0 to {depth - 1}")
    if (tokens := recipe.attack.params().get("tokens", 0)) >= (room := context_of(model.config)):
        raise UsageError(
            f"attack.tokens: {tokens} tokens leave no room for a question in the model's context of {room}"
        )
    if declared.access == "weights":
        matrices(model)
    check_others(recipe, subject, model)
    if declared.original and original.root != subject.root:
        ours, theirs = ({n: p.shape for n, p in m.named_parameters()} for m in (model, empty_model(original.root)))
        if other := [n for n in ours | theirs if ours.get(n) != theirs.get(n)]:
            raise UnavailableError(
                f"{recipe.attack.name} puts the weights of the original, {original.label}, into {subject.label}, "
                f"and they do not fit: {', '.join(other[:3])}"
            )
