"""References to datasets, as recipes name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from ilu_cli import registry
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec

NEAR = "near"  # the task of text around what is forgotten


class DataRef(Spec):
    """A dataset: a task by name, a file or folder, or a dataset of the hub with `text`, or `prompt` and `response`.

    `hub` takes a mirror under the data root, else the hub, and never a stand-in. `auto` is that for every model but the
    built-in one and its descendants: with those a task that is not in the data root is its built-in stand-in.
    """

    later = ("path", "made")

    name: str
    source: Literal["auto", "builtin", "hub", "path"] = "auto"
    split: str | None = Field(None, description="a split of the dataset; null: the one for training, or for testing")
    config: str | None = Field(None, description="the configuration of a hub dataset that is no task")
    limit: PositiveInt | None = Field(None, le=10**9, description="use only the first rows")
    max_length: int | None = Field(None, ge=8, description="tokens per sequence in training; null: as its stream says")
    path: str | None = Field(None, description="of `near`: a file with its text; null: the model itself makes it")
    made: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of `near`: sha256 of the text that was made; filled in by a plan"
    )


def _as_refs(value: Any) -> Any:
    """Let `capitals`, `{name: capitals}` and lists of either stand for a list of DataRef."""
    items = value if isinstance(value, list) else [value]
    return [_as_ref(item) for item in items]


def _as_ref(item: Any) -> Any:
    return {"name": item} if isinstance(item, str) else item


AnyRef = DataRef | str  # how it may be written, for the JSON Schema
TaskRef = Annotated[DataRef, BeforeValidator(_as_ref, json_schema_input_type=AnyRef)]
DataRefs = Annotated[
    list[DataRef],
    BeforeValidator(_as_refs, json_schema_input_type=AnyRef | Annotated[list[AnyRef], Field(min_length=1)]),
    Field(min_length=1),
]


def unknown(known: registry.Registry[Any], name: str) -> str:
    """What is said of a name that is not registered, with the nearest ones that are."""
    from ilu_cli.errors import near

    return f"unknown {known.kind} {name!r}.{near(name, known)}"


def data_problems(refs: list[DataRef], key: Key, *, indexed: bool = True) -> Iterator[tuple[Key, str]]:
    """What is wrong with references to datasets: an unknown name, or a source that the task does not have.

    `key` is where they stand in the recipe; `indexed` adds each one's place in the list.
    """
    for i, ref in enumerate(refs):
        here: Key = (*key, i) if indexed else key
        yield from _near_problems(ref, here)
        if ref.name in registry.task:
            yield from _task_problems(ref, here)
        elif ref.source == "builtin" or not is_place(ref.name):
            yield here, unknown(registry.task, ref.name)


def _task_problems(ref: DataRef, key: Key) -> Iterator[tuple[Key, str]]:
    """What a task does not have."""
    if ref.name == NEAR or ref.source == "path":
        return
    task = registry.task[ref.name].obj
    if ref.source == "hub" and not task.hub:
        yield key, f"{ref.name!r} is built in and has no hub dataset"
    if ref.source == "builtin" and not task.has_builtin():
        yield key, f"{ref.name!r} is not built in; it is on the hub as {task.hub}"
    if ref.config is not None:
        yield key, f"{ref.name!r} is a task, which knows its config; leave `config` out"
    known = dict.fromkeys([*task.splits, *task.splits.values()])
    if (ref.split or "train") not in known:
        wanted = f"no split {ref.split!r}" if ref.split else "no split for training: choose one with `split`"
        yield key, f"{ref.name!r} has {wanted}. It has {', '.join(known)}"


def _near_problems(ref: DataRef, key: Key) -> Iterator[tuple[Key, str]]:
    """What is wrong with near text, or with what only near text has."""
    if ref.name != NEAR:
        named = "path" if ref.path else "made"
        if ref.path or ref.made:
            yield (*key, named), f"{named!r} is a key of {NEAR!r}: name a file itself, as `name`"
    elif ref.path and ref.made:
        yield (*key, "path"), "text is made or read from a file: leave one of `path` and `made` out"
    elif key[0] == "forget":
        yield key, f"{NEAR!r} is text around what is forgotten, without its facts: it cannot be the forget data"
    elif ref.source != "auto" or ref.split or ref.config:
        yield key, f"{NEAR!r} is made by the model or read from `path`: leave source, split and config out"


def is_place(name: str) -> bool:
    """Whether a name can mean a file, a folder, a dataset in the data root, or one on the hub, rather than a task."""
    from ilu_cli.data.root import SUFFIXES, data_root

    root = data_root()
    return "/" in name or name.endswith(SUFFIXES) or Path(name).exists() or bool(root and (root / name).is_dir())
