"""The base of all parts of recipes: strict, and every number has a bound."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema

LARGEST = {"int": 10**6, "float": 1e9}
"""A number in a recipe is at most that, and not further below 0, where its key declares nothing else."""


def _bounded(node: Any) -> Any:
    """A core schema of pydantic with a bound for each number in it that has none."""
    if isinstance(node, list | tuple):
        return type(node)(map(_bounded, node))
    if not isinstance(node, dict):
        return node
    if (most := LARGEST.get(str(node.get("type")))) is None:
        return {k: _bounded(v) for k, v in node.items()}
    above = {} if {"lt", "le"} & node.keys() else {"le": most}
    return node | above | ({} if {"gt", "ge"} & node.keys() else {"ge": -most})


class Spec(BaseModel):
    """Base of all recipe parts: unknown keys and wrong types are errors, and so is a number beyond all sense."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    later: ClassVar[tuple[str, ...]] = ()
    """Keys that came later: left out of a dump at their default, so that recipes of before keep their hash."""

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> Any:
        found: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        return {k: v for k, v in found.items() if k not in self.later or getattr(self, k) != fields[k].default}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Bound the numbers of the keys, those of ideas and plug-ins too."""
        found: CoreSchema = _bounded(handler(source))
        return found
