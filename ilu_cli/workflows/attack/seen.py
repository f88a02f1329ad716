"""What the unlearned model was trained on, from the recipes of its lineage: its forget data and its environments."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, cast

import yaml

from ilu_cli.data.sampling import Sampler
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.errors import UsageError
from ilu_cli.models.subject import Subject, parent_of
from ilu_cli.recipe.specs import DataRef
from ilu_cli.runs.results import Row
from ilu_cli.tasks import Example


class Regularised(TypedDict, total=False):
    """A regulariser, as an unlearning recipe has it."""

    env: list[Row]
    batch: int
    long: str


class Steps(TypedDict):
    steps: int


class Forget(TypedDict):
    data: list[Row]


class Written(TypedDict):
    """What is read of an unlearning recipe as it was written."""

    seed: int
    train: Steps
    forget: Forget
    regularizers: list[Regularised]


def unlearning_recipes(subject: Subject) -> list[Written]:
    """The recipes of all unlearning runs that `subject` descends from, the latest first.

    They are read as they were written: the objective may come from a plugin that is not loaded now.
    """
    found = []
    current: Subject | None = subject
    while current is not None and current.run is not None:
        if current.run.manifest.command == "unlearn":
            found.append(yaml.safe_load((current.run.path / "recipe.yaml").read_text(encoding="utf-8")))
        above = current.run.manifest.parents[0]["kind"] == "run"
        current = parent_of(current) if above else None
    return found


def kept_of(recipe: Written) -> Written:
    """What a manifest keeps of an unlearning recipe, so that the attack can be made again without its run."""
    regularizers = [
        cast(Regularised, {k: reg[k] for k in ("env", "batch", "long") if k in reg}) for reg in recipe["regularizers"]
    ]
    return Written(
        seed=recipe["seed"],
        train=Steps(steps=recipe["train"]["steps"]),
        forget=Forget(data=recipe["forget"]["data"]),
        regularizers=regularizers,
    )


def forget_data(recipes: Sequence[Written], key: str, label: str) -> list[DataRef]:
    """The forget data of unlearning recipes.

    Raises:
        UsageError: if there is no such recipe.
    """
    refs = [DataRef(**d) for recipe in recipes for d in recipe["forget"]["data"]]
    if not refs:
        raise UsageError(
            f"{label} does not descend from an unlearning run, so its forget data is not known",
            hint=f"name it: --set {key}=capitals, or a jsonl file",
        )
    return list(dict.fromkeys(refs))


def row_hash(example: Example) -> str:
    """What makes two rows the same: the text, wherever it comes from."""
    return hashlib.sha256(f"{example.prompt}\x00{example.target}".encode()).hexdigest()


def _seen(data: Dataset, recipe: Written, reg: Regularised) -> set[int]:
    """The rows that training drew from an environment; of split texts, which are drawn in pieces, all."""
    if reg.get("long") == "split" and not all(e.prompt for e in data.examples()):
        return set(range(len(data.rows)))
    sampler = Sampler([len(data.rows)], recipe["seed"], data.ref.name)  # as `unlearn.plan` names the stream
    return {i for step in range(recipe["train"]["steps"]) for _, i in sampler.rows(step, reg["batch"])}


@dataclass
class Seen:
    """The environment datasets of a lineage, as row hashes: all of them, and those that training visited."""

    recipes: Sequence[Written]
    names: list[str] = field(default_factory=list)

    @functools.cached_property
    def hashes(self) -> tuple[set[str], set[str]]:
        every, visited = set[str](), set[str]()
        for recipe in self.recipes:
            for reg in recipe["regularizers"]:
                for d in reg["env"]:
                    data = load_dataset(DataRef(**d), "train")
                    rows = [row_hash(e) for e in data.examples()]
                    every |= set(rows)
                    visited |= {rows[i] for i in _seen(data, recipe, reg)}
                    self.names.append(data.ref.name)
        return every, visited

    def without(self, data: Dataset) -> tuple[Dataset, dict[str, int], str]:
        """The rows of `data` that are in no environment; if all are, those that training never visited.

        Returns:
            The dataset; `{rows, overlap}`, how many are left and how many were taken out; and a note, or nothing.
        """
        every, visited = self.hashes
        rows = [row_hash(e) for e in data.examples()]
        if not every & set(rows):
            return data, {"rows": len(rows), "overlap": 0}, ""
        what = f"{data.ref.name} was an environment of this model"
        banned = every if set(rows) - every else visited
        kept = [r for r, h in zip(data.rows, rows) if h not in banned]
        if not kept:
            overlap = {"rows": len(rows), "overlap": len(rows)}
            seen = f"training saw, or may have seen, all {len(rows)} rows"
            return data, overlap, f"{what}, and {seen}: this attack is NOT on unseen data"
        taken = len(rows) - len(kept)
        note = f"{what}: {taken} of {len(rows)} rows that it was trained on are left out of the attack"
        return replace(data, rows=kept), {"rows": len(kept), "overlap": taken}, note
