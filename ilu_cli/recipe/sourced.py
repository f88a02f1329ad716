"""Where the tasks of a recipe come from, where that is not written: all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.recipe.refs import DataRef

R = TypeVar("R", bound=BaseModel)
Supply = Literal["builtin", "hub"]


def sourced(recipe: R, source: Supply) -> R:
    """The recipe with this source for every task that has a stand-in and names no source; what is written stays.

    A table that comes with the package alone (`capitals`) is no stand-in of anything, and stays as it is.

    Raises:
        UsageError: if `builtin` is asked of a task that is on the hub only.
    """

    def change(ref: DataRef) -> DataRef:
        if ref.source != "auto" or ref.name not in registry.task:
            return ref
        task = registry.task[ref.name].obj
        if source == "builtin" and not task.has_builtin():
            raise UsageError(f"--source builtin: {ref.name!r} is not built in; it is on the hub as {task.hub}")
        return ref.model_copy(update={"source": source}) if task.hub and task.has_builtin() else ref

    found: R = mapped(recipe, change)
    return found


def mapped(value: Any, change: Callable[[DataRef], DataRef]) -> Any:
    """A part of a recipe with its datasets changed; one in which nothing changes is returned as it is."""
    if isinstance(value, DataRef):
        return change(value)
    if isinstance(value, list):
        items = [mapped(item, change) for item in value]
        return items if any(a is not b for a, b in zip(items, value)) else value
    if isinstance(value, dict):
        known = {k: mapped(v, change) for k, v in value.items()}
        return known if any(known[k] is not value[k] for k in value) else value
    if isinstance(value, BaseModel):
        fields = {k: getattr(value, k) for k in type(value).model_fields}
        update = {k: new for k, old in fields.items() if (new := mapped(old, change)) is not old}
        return value.model_copy(update=update) if update else value
    return value
