"""`ilu taskvec`: find the checkpoints by lineage, and compare their task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import Subject, lineage, of_run, original_of
from ilu_cli.recipe.schema import TaskvecRecipe
from ilu_cli.runs.store import Run, Store
from ilu_cli.taskvec.angles import Gram, task_vectors
from ilu_cli.taskvec.delta import open_checkpoint


@dataclass
class Vectors:
    """θo, θu, θ_o^ft and θ_u^ft, as far as they exist, and the inner products of their task vectors."""

    roles: dict[str, Subject]
    grams: dict[str, Gram]

    def as_dict(self) -> dict[str, Any]:
        checkpoints = {role: {"id": s.label, "folder": str(s.folder)} for role, s in self.roles.items()}
        return {"checkpoints": checkpoints, "groups": {group: g.as_dict() for group, g in self.grams.items()}}


def comparable(run: Run) -> bool:
    """Whether a run is worth comparing: an unlearned model, or an attack on a run."""
    return run.complete and (run.manifest.command == "unlearn" or run.manifest.parents[0]["kind"] == "run")


def find_roles(subject: Subject, store: Store) -> dict[str, Subject]:
    """The checkpoints around a run: its original, the unlearned model, and fine-tunings of both by the same attack.

    Raises:
        UnavailableError: if there is no unlearned model in the lineage.
    """
    unlearned = next((s for s in reversed(lineage(subject)) if s.run and s.run.manifest.command == "unlearn"), None)
    if unlearned is None:
        raise UnavailableError(f"{subject.label} does not descend from an unlearned model", hint="run `ilu unlearn`")
    original = original_of(subject)
    roles = {"original": original, "unlearned": unlearned}
    attacks = [r for r in store.runs() if r.complete and r.manifest.command == "attack"]
    attacked: Run | None = subject.run if subject.run and subject.run.manifest.command == "attack" else None
    if attacked is None:
        attacked = next((r for r in reversed(attacks) if r.manifest.parents[0]["id"] == unlearned.label), None)
    if attacked is None:
        return roles
    roles["attacked"] = of_run(attacked)
    for r in reversed(attacks):
        parent = r.manifest.parents[0]
        same = r.manifest.recipe_sha256 == attacked.manifest.recipe_sha256
        if same and parent["kind"] == original.kind != "run" and parent["weights"] == original.weights:
            roles["finetuned"] = of_run(r)
            break
    return roles


def run(recipe: TaskvecRecipe, subject: Subject, store: Store) -> Vectors:
    """Compare the task vectors around `subject`.

    Raises:
        UnavailableError: if checkpoints are missing or do not have the same weights.
    """
    roles = find_roles(subject, store)
    opened = {role: open_checkpoint(s) for role, s in roles.items()}
    grams = task_vectors(
        opened["original"], opened["unlearned"], opened.get("finetuned"), opened.get("attacked"), recipe.include
    )
    return Vectors(roles, grams)


def verdict(gram: Gram) -> str:
    """One sentence: does fine-tuning walk back?"""
    if "u→ft" not in gram.names:
        return "no attack on this run yet: `ilu attack` fine-tunes it"
    cosine = gram.cosine("u", "u→ft")
    if cosine is None:
        return "one of the task vectors is zero"
    undone = -cosine * gram.norm("u→ft") / gram.norm("u")
    if abs(cosine) < 0.01:
        how = "is orthogonal to the unlearning direction"
    elif cosine > 0:
        how = "goes on along the unlearning direction"
    else:
        how = f"walks back along the unlearning direction, and undoes {undone:.2%} of its length"
    return f"cos(τ_u→ft, τ_u) = {cosine:+.4f}: fine-tuning {how}"
