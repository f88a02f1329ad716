"""What the unlearned model was trained on, from the recipes of its lineage: its forget data and its environments."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, cast

from ilu_cli.care.overlap import within
from ilu_cli.data import made
from ilu_cli.data.sampling import Sampler
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.errors import UsageError
from ilu_cli.models.subject import Subject, parent_of
from ilu_cli.recipe.refs import DataRef
from ilu_cli.runs.results import Row


class Regularised(TypedDict, total=False):
    """A regulariser, as an unlearning recipe has it."""

    env: list[Row]
    batch: int
    long: str


class Steps(TypedDict):
    """The length of a training, as an unlearning recipe has it."""

    steps: int


class Forget(TypedDict):
    """The forget data, as an unlearning recipe has them."""

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
    found: list[Written] = []
    current: Subject | None = subject
    while current is not None and current.run is not None:
        if current.run.manifest.command == "unlearn":
            made.restore(current.run.path / made.COPY)
            found.append(cast(Written, current.run.recipe()))
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


def texts_of(data: Dataset) -> list[str]:
    """The whole texts of a dataset's rows."""
    return [e.prompt + e.target for e in data.examples()]


def _seen(data: Dataset, recipe: Written, reg: Regularised) -> set[int]:
    """The rows that training drew from an environment; of split texts, which are drawn in pieces, all."""
    if reg.get("long") == "split" and not all(e.prompt for e in data.examples()):
        return set(range(len(data.rows)))
    sampler = Sampler([len(data.rows)], recipe["seed"], data.ref.name)  # as `unlearn.plan` names the stream
    return {i for step in range(recipe["train"]["steps"]) for _, i in sampler.rows(step, reg["batch"])}


@dataclass
class Seen:
    """The environment datasets of a lineage, as texts: all of them, and those that training visited.

    What is in them is told by content (`ilu_cli.care.overlap`), whatever the dataset is called.
    """

    recipes: Sequence[Written]
    names: list[str] = field(default_factory=list)

    @functools.cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """All rows of the environments, and those that training can have drawn."""
        every, visited = list[str](), list[str]()
        for recipe in self.recipes:
            for reg in recipe["regularizers"]:
                for d in reg["env"]:
                    data = load_dataset(DataRef(**d), "train")
                    rows = texts_of(data)
                    every += rows
                    visited += [rows[i] for i in sorted(_seen(data, recipe, reg))]
                    self.names.append(data.ref.name)
        return every, visited

    def without(self, data: Dataset) -> tuple[Dataset, dict[str, int], str]:
        """The rows of `data` that are in no environment; if all are, those that training never visited.

        Returns:
            The dataset; `{rows, overlap}`, how many are left and how many were taken out; and a note, or nothing.
        """
        every, visited = self.texts
        rows = texts_of(data)
        banned = within(rows, every).keys() if every else set()
        if not banned:
            return data, {"rows": len(rows), "overlap": 0}, ""
        what = f"{data.ref.name} was an environment of this model"
        banned = banned if len(banned) < len(rows) else within(rows, visited).keys()
        kept = [r for i, r in enumerate(data.rows) if i not in banned]
        if not kept:
            overlap = {"rows": len(rows), "overlap": len(rows)}
            seen = f"training saw, or may have seen, all {len(rows)} rows"
            return data, overlap, f"{what}, and {seen}: this attack is NOT on unseen data"
        taken = len(rows) - len(kept)
        note = f"{what}: {taken} of {len(rows)} rows that it was trained on are left out of the attack"
        return replace(data, rows=kept), {"rows": len(kept), "overlap": taken}, note
