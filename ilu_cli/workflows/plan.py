"""A plan: the recipe, checked against the real model and data, and priced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

from ilu_cli.data.cache import tokenised
from ilu_cli.data.encode import Corpus
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.data.special import check_rows
from ilu_cli.engine.layout import rope_bound
from ilu_cli.engine.scoring import context_of
from ilu_cli.engine.stream import TrainStream
from ilu_cli.errors import UsageError
from ilu_cli.metrics.figure import size
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.load import digest, dump
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import Recipe
from ilu_cli.recipe.specs import Form, TrainSpec
from ilu_cli.runs.files import ModelRecord
from ilu_cli.runs.files import check_disk as check_disk
from ilu_cli.runs.results import Data, Row
from ilu_cli.tasks import Example
from ilu_cli.workflows.content import Content
from ilu_cli.workflows.moments import MemoryEstimate

SURE = 1.5  # times the memory of the machine: an estimate that runs over by this cannot be right by its error
CHAT_KEYS = ("chat_system", "chat_date")  # in a manifest if they are given


class Plan(Protocol):
    """What a command is going to do, found out and checked. `--dry-run` prints one, as JSON or in words."""

    def to_json(self) -> Row:
        """The object that `--json` prints."""
        ...

    def lines(self) -> list[str]:
        """The same in words, a line each."""
        ...


@dataclass(frozen=True)
class Training:
    """How much is trained. `peak_memory_bytes` is an estimate, `memory_bytes` what this machine has."""

    steps: int
    trainable_parameters: int
    peak_memory_bytes: int
    memory_bytes: int


@dataclass(kw_only=True)
class RunPlan:
    """The plan of a recipe on one model, the `subject`, which has so many `parameters`.

    `data` is what will be read, `training` how much is trained, if anything is, `memory` what that takes by kind, and
    `unpriced` what is not in it.
    """

    recipe: Recipe
    subject: Subject
    parameters: int
    parents: list[ModelRecord]
    data: list[Data] = field(default_factory=list)
    training: Training | None = None
    memory: MemoryEstimate | None = None
    unpriced: str = ""
    content: Content = field(default_factory=Content)

    @property
    def peak_memory(self) -> int:
        """Bytes that training takes at its peak (estimate); 0 if nothing is trained."""
        return self.training.peak_memory_bytes if self.training else 0

    def to_json(self) -> Row:
        recipe, s = self.recipe.model_dump(), self.subject
        return {
            "command": recipe["command"],
            "recipe": recipe,
            "recipe_sha256": digest(self.recipe),
            "model": {"ref": s.label, "kind": s.kind, "folder": str(s.folder), "parameters": self.parameters},
            "parents": self.parents,
            **(asdict(self.training) if self.training else {}),
            **({"main_memory_bytes": self.memory.main_peak} if self.memory and self.memory.main else {}),
            **({"unpriced": self.unpriced} if self.unpriced else {}),
            "data": self.data,
            **({"content": self.content.facts(), "warnings": self.content.told()} if self.content.datasets else {}),
        }

    def lines(self) -> list[str]:
        found = [dump(self.recipe).rstrip(), ""]
        found.append(f"model       {self.subject.label} ({self.subject.kind}), {self.parameters:,} parameters")
        if t := self.training:
            found.append(f"steps       {t.steps}")
            found.append(f"trainable   {t.trainable_parameters:,} parameters")
            peak, there = size(t.peak_memory_bytes), size(t.memory_bytes)
            found.append(f"memory      about {peak} at the peak (estimate); this machine has {there}")
        if self.memory and self.memory.main:
            found.append(f"main memory about {size(self.memory.main_peak)} of a node at the peak (estimate)")
        if self.unpriced:
            found.append(f"not priced  {self.unpriced}")
        for d in self.data:
            cut = f", {d['truncated']} cut" if d.get("truncated") else ""
            found.append(f"data        {d['role']}: {d['name']} ({d['source']}), {d['rows']} rows{cut}")
        found += [f"warning     {w.text} [{w.id}]" for w in self.content.warned]
        found += [f"parent      {p['role']}: {p['id']} ({p['kind']})" for p in self.parents]
        return [*found, f"recipe      sha256 {digest(self.recipe)[:16]}"]


@dataclass
class StreamPlan:
    """A stream ready for training, and the records of its datasets."""

    stream: TrainStream
    datasets: list[Dataset]
    corpora: list[Corpus]
    form: Form

    def records(self) -> list[Data]:
        """The manifest's record of each dataset: its fingerprint, form, and how many rows were cut short."""
        role, keys = self.stream.name, ("chat", "long", *(k for k in CHAT_KEYS if getattr(self.form, k) is not None))
        form = cast(Data, {k: getattr(self.form, k) for k in keys})
        return [
            cast(Data, {**d.record(role), **form, "truncated": c.truncated})
            for d, c in zip(self.datasets, self.corpora)
        ]

    def cut(self) -> list[str]:
        """What the user should know of rows that were too long, by dataset."""
        pairs = [(d.ref.name, c) for d, c in zip(self.datasets, self.corpora) if c.truncated]
        return [f"{self.stream.name}: {c.truncated} of {len(c.items)} examples of {name} were cut" for name, c in pairs]


def plan_stream(name: str, refs: list[DataRef], batch: int, form: Form, seed: int, tokenizer: Any) -> StreamPlan:
    """Load and encode the datasets of a stream.

    Raises:
        UnavailableError: if one is missing, empty, or has nothing to learn from.
    """
    return stream_of(name, [load_dataset(ref, "train") for ref in refs], batch, form, seed, tokenizer)


def stream_of(name: str, datasets: list[Dataset], batch: int, form: Form, seed: int, tokenizer: Any) -> StreamPlan:
    """Encode loaded datasets into a stream."""
    corpora = [tokenised(tokenizer, d.examples(), form_of(d.ref, form), d.ref.name) for d in datasets]
    return StreamPlan(TrainStream(name, corpora, batch, seed), datasets, corpora, form)


def form_of(ref: DataRef, form: Form) -> Form:
    """How a dataset's examples become rows in a stream of this form: its own length comes before the stream's."""
    return form if ref.max_length is None else form.model_copy(update={"max_length": ref.max_length})


def add_chosen(plan: StreamPlan, kind: str, instead: Sequence[list[Example]], tokenizer: Any) -> None:
    """Put beside every row what should be said `instead`, by dataset: a `refusal`, `counterfactual` or `alternative`.

    Raises:
        UsageError: if texts are split, so that there are no pairs.
    """
    s = plan.stream
    if plan.form.long == "split":
        raise UsageError(f"{s.name}.long: split parts texts into rows, and a {kind} belongs to a whole one")
    corpora = [
        tokenised(tokenizer, said, form_of(d.ref, plan.form), d.ref.name) for said, d in zip(instead, plan.datasets)
    ]
    s.chosen = TrainStream(s.name, corpora, s.batch, s.seed)


def check_streams(model: Any, streams: list[TrainStream], tokenizer: Any) -> None:
    """Check that the model has an embedding for every token of the data, and takes its rows.

    Raises:
        UnavailableError: if it has not: the tokenizer is that of another model.
        UsageError: as `check_lengths`.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    for corpus in (c for s in streams for c in s.read):
        check_rows(tokenizer, corpus.largest, rows)
    check_lengths(model, streams)


def check_lengths(model: Any, streams: Sequence[TrainStream]) -> None:
    """Look whether the model takes rows as long as those of the data, and reads each alike whatever stands beside it.

    LongRoPE turns all rows of a batch as its longest one, so those up to its bound and longer ones must not meet.

    Raises:
        UsageError: if it does not.
    """
    config = model.config.get_text_config()
    room, bound = context_of(config), rope_bound(config)
    corpora = [(s.name, c) for s in streams for c in s.read]
    name, longest = max(((name, c.longest) for name, c in corpora), key=lambda each: each[1])
    if longest > room:
        raise UsageError(
            f"{name}: a row has {longest:,} tokens, more than the model's context of {room:,}",
            hint=f"a max_length of {room} or less",
        )
    if bound is not None and min(c.shortest for _, c in corpora) <= bound < longest:
        raise UsageError(
            f"{name}: a row has {longest:,} tokens, and another at most {bound:,}: by its LongRoPE the model reads all "
            "rows of a batch as its longest one, so that what it says of a row would hang on those beside it",
            hint=f"a max_length of {bound} or less",
        )


def check_memory(needed: int, memory: tuple[int, int], note: Callable[[str], None]) -> None:
    """Refuse what no memory of this size could hold, and say so where it may not: the estimate is a third off at most.

    Args:
        needed: `MemoryEstimate.peak`; 0 if nothing is trained.
        memory: bytes in all and bytes free, as `Backend.memory` gives them.

    Raises:
        UsageError: if it is far more than there is in all.
    """
    total, free = memory
    if needed > SURE * total:
        raise UsageError(
            f"training would take about {needed / 1e9:,.1f} GB at its peak; this machine has {total / 1e9:,.1f} GB",
            hint="a smaller batch or max_length, --set train.accumulation=N, fewer train.params, lora, or train.memory",
        )
    if needed > free:
        note(f"training takes about {needed / 1e9:,.1f} GB at its peak (estimate); {free / 1e9:,.1f} GB are free")


def state_bytes(total: int, trainable: int, spec: TrainSpec) -> int:
    """Bytes that a run writes at most at a time: its checkpoints, and three states while one is written.

    While it heals the two of before are there too.
    """
    states = (3 if spec.save_every else 0) + (2 if spec.heal else 0)
    return 4 * total * (1 + len(spec.points)) + states * 12 * trainable + (8 << 20)
