"""Where rows come from: a file or folder, the data root, the hub, the built-in generator. Every load says which."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, cast

from ilu_cli import registry
from ilu_cli.data import made
from ilu_cli.data.hub import cache_only_if_silent
from ilu_cli.data.read import library, read
from ilu_cli.data.root import SUFFIXES, Found, data_root, in_root, locate
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.paths import is_hub_name
from ilu_cli.recipe.refs import NEAR, DataRef
from ilu_cli.runs.files import cache_dir
from ilu_cli.runs.results import Data
from ilu_cli.tasks import Example, Fields, Task, after


@dataclass(frozen=True)
class Dataset:
    """Rows of one split, their task, and where they came from: `path` (under the data root, or as given) or `hub`."""

    ref: DataRef
    split: str
    task: Task
    rows: list[Fields]
    source: str
    place: str | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows; what JSON has no form for (a date in a parquet file) counts as it is written."""
        text = json.dumps(self.rows, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def examples(self) -> list[Example]:
        """Prompt and target of every row."""
        return [self.task.example(row) for row in self.rows]

    def chosen(self, kind: str) -> list[Example]:
        """For every row what should be said instead: its `refusal` or `counterfactual`.

        Raises:
            UsageError: if the task has none.
        """
        return [getattr(self.task, kind)(row) for row in self.rows]

    def record(self, role: str) -> Data:
        """How a manifest names this dataset."""
        place = {self.source: self.place} if self.place else {}
        record = {
            "role": role,
            "name": self.ref.name,
            "source": self.source,
            **place,
            "split": self.split,
            "rows": len(self.rows),
            "fingerprint": self.fingerprint,
        }
        return cast(Data, record)


class UserText(Task):
    """A user's dataset: rows with `text`, or with `prompt` and `response`, and perhaps a `counterfactual` response."""

    fields: ClassVar = {}
    splits: ClassVar = {}

    def example(self, row: Fields) -> Example:
        if "text" in row:
            return Example("", row["text"])
        return Example(row["prompt"], after(row["prompt"], row["response"]))

    def counterfactual(self, row: Fields) -> Example:
        if not str(row.get("counterfactual") or "").strip():  # csv has an empty text where there is none
            raise UsageError("every row of the forget data needs a string `counterfactual`")
        prompt = "" if "text" in row else row["prompt"]
        return Example(prompt, after(prompt, row["counterfactual"]))

    def problem(self, row: Fields) -> str:
        fields = ("text",) if "text" in row else ("prompt", "response")
        if all(isinstance(row.get(f), str) for f in ("text", "prompt", "response")):
            return "has a `text`, and a `prompt` with a `response`: leave out what is not meant"
        if not all(isinstance(row.get(f), str) for f in fields):
            has = ", ".join(row) or "nothing"
            return f"needs a string `text`, or strings `prompt` and `response`; it has {has}"
        return "" if row[fields[-1]].strip() else f"{fields[-1]!r} is empty"

    def correct(self, row: Fields, completion: str) -> bool:
        return completion.strip() == str(row["response"]).strip()


@dataclass(frozen=True)
class Origin:
    """Where a dataset is to be had: on disk, on the hub, made by a model, or nowhere but in its task."""

    source: str
    task: Task
    split: str
    hub: str = ""
    config: str | None = None
    found: Found | None = None


def find_origin(ref: DataRef, split: str) -> Origin:
    """Decide where the rows come from, without reading them. What is on the hub may still be out of reach.

    Raises:
        UnavailableError: if it is a file or folder that is not there, or a task without that split.
    """
    if ref.name == NEAR:
        return _near(ref, split)
    if ref.name not in registry.task or ref.source == "path":
        return _users_own(ref, ref.split or split)
    task: Task = registry.task[ref.name].obj()
    wanted = ref.split or split
    if wanted not in (*task.splits, *task.splits.values()):
        raise UnavailableError(f"{ref.name} has no split {wanted!r}; it has {', '.join(task.splits.values())}")
    theirs = task.splits.get(wanted, wanted)
    if ref.source != "builtin" and (found := _in_data_root(ref, task, theirs)):
        return Origin("path", task, theirs, task.hub, task.config, found)
    if ref.source == "hub" or (ref.source == "auto" and not task.has_builtin()):
        return Origin("hub", task, theirs, task.hub, task.config)
    ours = next(name for name, their in task.splits.items() if wanted in (name, their))
    return Origin("builtin", task, ours)


def _near(ref: DataRef, split: str) -> Origin:
    """A file, or what a model made."""
    task: Task = registry.task[NEAR].obj()
    if ref.path is None:
        return Origin("made", task, split)
    return replace(_users_own(DataRef(name=ref.path, source="path"), split), task=task)


def _in_data_root(ref: DataRef, task: Task, split: str) -> Found | None:
    """The files of a task's split in the data root.

    Raises:
        UnavailableError: if it has the task and not the split, so that a stand-in would take its place in silence.
    """
    found, root = in_root([ref.name], None, split) or in_root([task.hub], task.config, split), data_root()
    if not found and root and ref.source == "auto" and any((root / n).is_dir() for n in _homes(ref.name, task)):
        raise UnavailableError(f"{root} holds {ref.name}, but not its split {split!r}")
    return found


def _homes(name: str, task: Task) -> list[str]:
    """The folders of a data root that hold this dataset and, of the hub's, this configuration."""
    return [name, *([f"{task.hub}/{task.config or ''}"] if task.hub else [])]


def _users_own(ref: DataRef, split: str) -> Origin:
    """A file or folder, a name in the data root, or a hub dataset; its rows are `UserText`."""
    path, task = Path(ref.name), UserText()
    if path.is_file():
        return Origin("path", task, split, found=Found((path,)))
    found = locate(path, ref.config, split) if ref.source != "hub" else None
    found = found or in_root([ref.name], ref.config, split)
    if found:
        return Origin("path", task, split, found=found)
    if path.is_dir():
        hint = f"name a file, or put {split}.jsonl (parquet, csv) into it"
        raise UnavailableError(f"the folder {path} has no split {split!r}", hint=hint)
    if ref.source != "path" and is_hub_name(ref.name) and not ref.name.endswith(SUFFIXES):
        return Origin("hub", task, split, ref.name, ref.config)
    raise UnavailableError(f"there is no dataset file or folder {path}")


def load_dataset(ref: DataRef, split: str) -> Dataset:
    """Load and check the rows of one split: `ref.split`, else `split` (`train`, `test`, or one of the task's own).

    Raises:
        UnavailableError: if the dataset is missing, empty, or has other fields than its task declares.
    """
    origin = find_origin(ref, split)
    task = origin.task
    if origin.found:
        place, rows = origin.found.name, read(origin.found, task.fields)
    elif origin.source == "hub":
        place, rows = origin.hub, _from_hub(origin)
    elif origin.source == "made":
        place, rows = None, iter([{"text": t} for t in _made(ref)])
    else:
        place, rows = None, iter(task.builtin(origin.split))
    name = f"{ref.name} ({place or 'builtin'})"
    checked = _checked(name, task, rows)
    kept = list(islice(filter(task.keep, checked), ref.limit))  # the limit counts kept rows
    if not kept:
        raise UnavailableError(f"the dataset {ref.name!r} ({place or origin.source}, {origin.split}) is empty")
    return Dataset(ref, origin.split, task, kept, origin.source, place)


def _made(ref: DataRef) -> list[str]:
    if ref.made is None:
        raise UnavailableError(
            f"{NEAR!r} is made by the model that forgets, for unlearning alone",
            hint="elsewhere name a file: {name: near, path: FILE}",
        )
    return made.texts_of(ref.made)


def _checked(name: str, task: Task, rows: Iterator[Fields]) -> Iterator[Fields]:
    """Yield the rows whose fields are as the task declares.

    Raises:
        UnavailableError: at the first row that is not so, naming dataset, row, field and what was found.
    """
    for i, row in enumerate(rows):
        for field, kind in task.fields.items():
            if field not in row:
                raise UnavailableError(f"{name}, row {i}: no field {field!r}; it has {', '.join(row) or 'nothing'}")
            value = row[field]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UnavailableError(f"{name}, row {i}: {field!r} is {type(value).__name__}, not {kind.__name__}")
            if kind is list and not all(isinstance(item, str) for item in row[field]):
                raise UnavailableError(f"{name}, row {i}: {field!r} is not a list of str")
        if problem := task.problem(row):
            raise UnavailableError(f"{name}, row {i}: {problem}")
        yield row


def _from_hub(origin: Origin) -> Iterator[Fields]:
    cache_only_if_silent()
    try:
        folder = str(cache_dir() / "datasets")
        return iter(
            library().load_dataset(
                origin.hub, origin.config, split=origin.split, cache_dir=folder, trust_remote_code=False
            )
        )
    except Exception as error:  # datasets, the hub client and httpx each raise their own
        first = (str(error).splitlines() or [""])[0]
        hint = origin.task.gated or "check the network and access rights"
        builtin = "; `--source builtin` takes the built-in stand-in" if origin.task.has_builtin() else ""
        raise UnavailableError(
            f"the dataset {origin.hub!r} ({origin.config or 'default'}, {origin.split}) cannot be had from the hub: "
            f"{type(error).__name__}: {first}",
            hint=f"{hint}; or mirror it under --data-root{builtin}",
        ) from error
