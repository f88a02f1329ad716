"""Every number of every recipe has an upper bound, those of ideas and of plug-ins too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field, ValidationError

from ilu_cli.recipe.schema import RECIPES, json_schema
from ilu_cli.recipe.spec import LARGEST, Spec


def unbounded(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") in ("integer", "number") and not {"maximum", "exclusiveMaximum"} & node.keys():
            yield path
        for key, value in node.items():
            yield from unbounded(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from unbounded(value, f"{path}.{i}")


@pytest.mark.parametrize("command", RECIPES)
def test_no_number_is_without_an_upper_bound(command: str) -> None:
    assert list(unbounded(json_schema(command))) == []


def test_the_walk_finds_a_number_without_one() -> None:
    assert list(unbounded({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]})) == [".anyOf.0"]


class Odd(Spec):
    whole: int = 0
    real: list[float | None] = []
    mine: int = Field(0, le=10**12)


def test_the_general_bound_gives_way_to_a_key_s_own() -> None:
    assert Odd(whole=10**6, real=[1e9, None], mine=10**12).mine == 10**12
    for wrong in ({"whole": 10**6 + 1}, {"whole": -(10**6) - 1}, {"real": [1.1e9]}, {"mine": 10**13}):
        with pytest.raises(ValidationError):
            Odd.model_validate(wrong)
    assert LARGEST == {"int": 10**6, "float": 1e9}
