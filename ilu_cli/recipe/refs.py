"""References to datasets, as recipes name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from ilu_cli import registry
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec


class DataRef(Spec):
    """A dataset: a task by name, a file or folder, or a dataset of the hub with `text`, or `prompt` and `response`.

    `hub` takes a mirror under the data root, else the hub, and never a stand-in. `auto` is that for every model but the
    built-in one and its descendants: with those a task that is not in the data root is its built-in stand-in.
    """

    name: str
    source: Literal["auto", "builtin", "hub", "path"] = "auto"
    split: str | None = Field(None, description="a split of the dataset; null: the one for training, or for testing")
    config: str | None = Field(None, description="the configuration of a hub dataset that is no task")
    limit: PositiveInt | None = Field(None, le=10**9, description="use only the first rows")
    max_length: int | None = Field(None, ge=8, description="tokens per sequence in training; null: as its stream says")


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
        if ref.name not in registry.task:
            if ref.source == "builtin" or not is_place(ref.name):
                yield here, unknown(registry.task, ref.name)
            continue
        if ref.source == "path":
            continue
        task = registry.task[ref.name].obj
        if ref.source == "hub" and not task.hub:
            yield here, f"{ref.name!r} is built in and has no hub dataset"
        if ref.source == "builtin" and not task.has_builtin():
            yield here, f"{ref.name!r} is not built in; it is on the hub as {task.hub}"
        if ref.config is not None:
            yield here, f"{ref.name!r} is a task, which knows its config; leave `config` out"
        known = dict.fromkeys([*task.splits, *task.splits.values()])
        if (ref.split or "train") not in known:
            wanted = f"no split {ref.split!r}" if ref.split else "no split for training: choose one with `split`"
            yield here, f"{ref.name!r} has {wanted}. It has {', '.join(known)}"


def is_place(name: str) -> bool:
    """Whether a name can mean a file, a folder, a dataset in the data root, or one on the hub, rather than a task."""
    from ilu_cli.data.root import SUFFIXES, data_root

    root = data_root()
    return "/" in name or name.endswith(SUFFIXES) or Path(name).exists() or bool(root and (root / name).is_dir())
