"""Other models whose weights an attack reads: by its keys `model`, `finetuned` and `retain`."""

from __future__ import annotations

from typing import Any

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.load import checked_model
from ilu_cli.models.subject import Subject, find_subject
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.runs.files import same_model
from ilu_cli.runs.store import Store
from ilu_cli.workflows.needs.inputs import other_models

SHOWN = 3  # names that a message lists


def other_model(ref: str) -> Subject:
    """A run or model by its name.

    Raises:
        UnavailableError: if there is none, or it is damaged.
    """
    return find_subject(ref, Store())


def newest_finetune(original: Subject) -> str:
    """The newest run that trained the original itself on something and kept its weights: a reference line.

    Raises:
        UsageError: if there is none.
    """
    record = original.record("original")
    for run in reversed(Store().runs()):
        m = run.manifest
        trained = m.command == "attack" and any(d["role"] == "attack" for d in m.data)
        if run.complete and trained and m.weights and same_model(m.parents[0], record):
            return run.id
    raise UsageError(
        f"attack.finetuned: no run here has fine-tuned {original.label} itself and kept its weights",
        hint=f"make one, `ilu attack {original.label} --task sst2`, or name a model: --set attack.finetuned=…",
    )


def check_others(recipe: AttackRecipe, subject: Subject, model: Any) -> None:
    """Check that the models which a recipe names have the weights of the one under attack.

    Raises:
        UnavailableError: if one is not there, or has others.
    """
    for ref in other_models(recipe).values():
        check_same_weights(subject.label, other_model(ref), model)


def check_same_weights(label: str, other: Subject, model: Any) -> None:
    """Compare names and shapes with those of `model`, which is `label`.

    Raises:
        UnavailableError: if they differ.
    """
    ours, theirs = ({n: p.shape for n, p in m.named_parameters()} for m in (model, checked_model(other)))
    odd = [n for n in ours | theirs if ours.get(n) != theirs.get(n)]
    if odd:
        raise UnavailableError(
            f"the weights of {other.label} do not fit {label}, which they are to be put together with: "
            f"{', '.join(odd[:SHOWN])}"
        )
