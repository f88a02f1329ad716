"""YAML with line numbers, and the layers (file, flags, `--set`) that make up one recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ilu_cli.errors import UsageError, brief
from ilu_cli.recipe.command import today
from ilu_cli.recipe.yaml_text import DEEPEST, YamlError, read_yaml

Key = tuple[str | int, ...]
PLACE = re.compile("[0-9]{1,6}")  # of an item in a list
SHOWN = 20  # problems in a message


@dataclass
class Problem:
    """One thing wrong with a recipe: where (`recipe.yaml:12`, `--set train.lr`), which key, what."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class RecipeError(UsageError):
    """Every problem of a recipe at once."""

    def __init__(self, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {p}" for p in problems[:SHOWN])
        lines += f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        super().__init__(f"the recipe has {count}:\n{lines}", hint="`ilu list` shows what is known")
        self.problems = problems


def _exact(key: Key) -> Key:
    """The key with the places in lists as numbers, however they were written."""
    return tuple(int(p) if isinstance(p, str) and PLACE.fullmatch(p) else p for p in key)


def _has_place(node: Any, part: str | int) -> bool:
    """Whether something can be written at `part` of it."""
    return isinstance(node, dict) or (isinstance(node, list) and isinstance(part, int) and part < len(node))


@dataclass
class Layers:
    """A recipe being put together: the raw data and where each key came from."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, key: Key) -> str:
        """Return where `key`, or its nearest known ancestor, was written."""
        key = _exact(key)
        for end in range(len(key), 0, -1):
            if key[:end] in self.origins:
                return self.origins[key[:end]]
        return self.origins.get((), "recipe")

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Write `value` at `key`, making the mappings (and, for a 0, lists) on the way.

        A path that cannot be is recorded as a problem.
        """
        node: Any = self.data
        exact = _exact(key)
        if len(key) > DEEPEST:
            self.problems.append(Problem(origin[:60], "", f"a key has at most {DEEPEST} parts"))
            return
        for i, part in enumerate(key):
            if isinstance(node, list):
                part = exact[i]
                if part == len(node):
                    node.append({})
            if not _has_place(node, part):
                self.problems.append(Problem(origin, dotted(key), f"there is no {dotted(key[: i + 1])} to set"))
                return
            if i == len(key) - 1:
                node[part] = value
                break
            if isinstance(node, dict) and not isinstance(node.get(part), (dict, list)):
                node[part] = [] if exact[i + 1] == 0 else {}
                self.origins[exact[: i + 1]] = origin
            node = node[part]
        self.origins = {k: v for k, v in self.origins.items() if k[: len(exact)] != exact}
        self.origins[exact] = origin


def dotted(key: Key) -> str:
    """`("a", 0, "b")` as `a.0.b`."""
    return ".".join(map(str, key))


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """A nested recipe as `{"train.lr": 1e-5, "forget.data.0.name": "capitals"}`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return {key: value}
    return {k: v for part, inner in items for k, v in flat(inner, f"{key}.{part}" if key else str(part)).items()}


def parse_scalar(text: str, where: str = "") -> Any:
    """Read the right-hand side of `--set` as YAML.

    Raises:
        UsageError: if it is not YAML.
    """
    try:
        return read_yaml(text)[1]
    except YamlError as error:
        raise UsageError(
            f"{where}{brief(text, 60)} is not a YAML value: {error.what}", hint="quote what is text: --set key='\"…\"'"
        ) from error


def read_layers(path: Path) -> Layers:
    """Read a YAML recipe, keeping the line of every key.

    Raises:
        RecipeError: if the file is not YAML, not a mapping, or has a key twice.
        UsageError: if the file cannot be read.
    """
    try:
        root, data = read_yaml(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise RecipeError([Problem(f"{path.name}:{error.line}", "", error.what)]) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}", hint="name a YAML file in UTF-8") from error
    layers = Layers(origins={(): f"{path.name}:1"})
    if root is None:
        return layers
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{path.name}:1", "", "a recipe is a mapping of keys to values")])
    _mark(root, (), path.name, layers)
    if isinstance(command := data.get("command"), str):
        data["command"] = today(command)
    layers.data = data
    return layers


def _mark(node: yaml.Node, key: Key, name: str, layers: Layers) -> None:
    """Record the line of every key below `node`, and keys that stand twice."""
    layers.origins.setdefault(_exact(key), f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(item, (*key, i), name, layers)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for part, value in node.value:
            child = (*key, part.value)
            where = f"{name}:{part.start_mark.line + 1}"
            if part.value in seen:
                layers.problems.append(Problem(where, dotted(child), "stands here a second time"))
            seen.add(part.value)
            layers.origins[_exact(child)] = where
            _mark(value, child, name, layers)
