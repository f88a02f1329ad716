"""Which datasets of a run must be apart by content, what is in more than one of them, and what that makes void."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ilu_cli.benchmarks import Benchmark, Row
from ilu_cli.care import Warned, once
from ilu_cli.care.content import HALF, Lines, Shared
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.kept import told
from ilu_cli.recipe.refs import DataRef

REMEDY = "remove the rows from one of the two, or choose other data"


@dataclass
class Content:
    """What was found: for a manifest `facts`, and the warnings."""

    datasets: list[Lines] = field(default_factory=list)
    overlaps: list[Shared] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    warned: list[Warned] = field(default_factory=list)

    def facts(self) -> dict[str, object]:
        """Counts, also those of 0: what was looked at and found apart."""
        told = {"rows": [d.facts() for d in self.datasets], "overlap": [o.facts() for o in self.overlaps]}
        return told | ({"unread": self.unread} if self.unread else {})

    def told(self) -> list[Row]:
        """The warnings as they are kept."""
        return [w.to_json() for w in self.warned]

    def look(self, *datasets: Lines) -> None:
        """Look at the rows of datasets by themselves."""
        self.datasets += datasets
        self.warned = once([*self.warned, *(w for d in datasets for w in d.warned())])

    def apart(self, a: Lines, b: Lines, why: str, void: float | None = None) -> None:
        """Two datasets that must be apart, either way round: `why` tells what an overlap does.

        Raises:
            UsageError: if more than the share `void` of one is in the other; None: never.
        """
        for left, right in ((a, b), (b, a)):
            found = shared(left, right)
            if void is not None and found.rows and found.share >= void:
                raise UsageError(f"{found.told()}. {why}", hint=REMEDY)
            self.overlaps.append(found)
        self.warned = once([*self.warned, self.overlaps[-2].warned(why) or self.overlaps[-1].warned(why)])


def shared(left: Lines, right: Lines) -> Shared:
    """The rows of one that are in the other, read if they were looked for before (`ilu_cli.models.kept`)."""
    source = ["shared", left.digest, right.digest]
    return Shared(left, right, dict(told(source, lambda: sorted(Shared.of(left, right).rows.items()))))


def rows_of(role: str, data: Dataset) -> Lines:
    """The whole texts of a dataset, and its targets."""
    examples = data.examples()
    return Lines(role, data.ref.name, [e.prompt + e.target for e in examples], [e.target for e in examples], data.place)


def questions_of(name: str, items: Sequence[Row]) -> Lines:
    """What a benchmark asks: of questions with choices of their own the right answer too; of texts the texts."""
    texts = []
    for item in items:
        said = item.get("question") or item.get("prompt") or item.get("text") or (item.get("doc") or {}).get("text")
        right = item["choices"][item["answer"]] if {"choices", "answer"} <= item.keys() else ""
        texts.append(f"{said}{right if len(right.strip()) > 1 else ''}" if isinstance(said, str) else "")
    return Lines("benchmark", name, texts)


def of_training(forget: Iterable[Dataset], retain: Iterable[Dataset], environments: Iterable[Dataset]) -> Content:
    """What an unlearning run trains on.

    Raises:
        UsageError: if an environment and the forget data share a row, or half of the forget or retain data are in the
            other.
    """
    content = Content()
    topic, kept, envs = (
        [rows_of(role, d) for d in data]
        for role, data in (("forget", forget), ("retain", retain), ("environment", environments))
    )
    content.look(*topic, *kept, *envs)
    for f in topic:
        for e in envs:
            content.apart(f, e, "An environment must be unrelated to what is forgotten.", 0)
        for r in kept:
            content.apart(f, r, "What is retained cannot be forgotten.", HALF)
    return content


Stance = Literal["taught", "held out"] | None


def of_attack(
    attack: Sequence[Dataset], lineage: Sequence[Mapping[str, Any]], stance: Stance, mixed: Sequence[Dataset] = ()
) -> Content:
    """What an attack trains on, against the forget and retain data of the `lineage`, recipes as they were written.

    What is `mixed` in may be what the unlearner kept, and holds no forget data that the attack itself may not.

    Raises:
        UsageError: if it claims to hold the forget data out, and does not.
    """
    content, mine = Content(), [rows_of("attack", d) for d in (*attack, *mixed)]
    content.look(*mine)
    for recipe in lineage:
        for f in _read(content, "forget", recipe):
            for a in mine:
                why = "What comes back may have been taught anew."
                if stance == "taught":
                    content.overlaps.append(shared(a, f))
                else:
                    content.apart(a, f, why, 0 if stance == "held out" else None)
        for r in _read(content, "retain", recipe):
            for a in mine[: len(attack)]:
                content.apart(a, r, "The attack trains on what unlearning trained on too.")
    return content


def of_benchmarks(
    content: Content,
    asked: Mapping[str, tuple[Benchmark, Sequence[Row]]],
    trained: Sequence[Lines],
    stance: Stance = None,
) -> None:
    """Add the questions of benchmarks that stand in training text.

    The forget data hold those of the forget topic by their nature, and an attack that teaches them does; they are not
    looked for there. What a benchmark of retained data has of these is counted only.
    """
    for name, (bench, items) in asked.items():
        questions = questions_of(name, items)
        for rows in trained:
            if bench.role == "forget" and (rows.role == "forget" or stance == "taught"):
                continue
            found = shared(questions, rows)
            content.overlaps.append(found)
            why = "The result tells what was trained on, not what is known."
            if not (bench.retains and rows.role == "retain"):
                content.warned = once([*content.warned, found.warned(why)])


def trained_on(content: Content, lineage: Sequence[Mapping[str, Any]]) -> list[Lines]:
    """The retain and environment data of unlearning recipes, as far as they can be read."""
    found = [r for recipe in lineage for part in ("retain", "environment") for r in _read(content, part, recipe)]
    return list({(r.role, r.name): r for r in found}.values())


def _read(content: Content, role: str, recipe: Mapping[str, Any]) -> list[Lines]:
    """The data of one part of a recipe; what cannot be had any more is named in `unread`."""
    if role == "environment":
        refs = [d for reg in recipe.get("regularizers") or [] for d in reg["env"]]
    else:
        refs = (recipe.get(role) or {}).get("data") or []
    found = []
    for ref in refs:
        try:
            found.append(rows_of(role, load_dataset(DataRef(**ref), "train")))
        except UnavailableError:
            content.unread = list(dict.fromkeys([*content.unread, f"{role}: {ref['name']}"]))
    return found
