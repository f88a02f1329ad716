"""From a recipe's name, flags and `--set` to one validated recipe, or to every problem at once."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import ilu_cli
from ilu_cli.errors import UsageError, brief, near
from ilu_cli.recipe.bench import benchmark_tag
from ilu_cli.recipe.command import hashed
from ilu_cli.recipe.grid import AnyRecipe
from ilu_cli.recipe.schema import Recipe, schema
from ilu_cli.recipe.source import Key, Layers, Problem, RecipeError, dotted, parse_scalar, read_layers
from ilu_cli.recipe.yaml_text import write_yaml

R = TypeVar("R", bound=AnyRecipe)


def recipes_dir() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    package = Path(ilu_cli.__file__).parent
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {p.stem: p for p in sorted(recipes_dir().glob("*.yaml"))}


def about(path: Path) -> str:
    """The first line of a shipped recipe, which says what it is."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def find(name: str) -> Path:
    """Find a recipe by shipped name or by path.

    Raises:
        UsageError: if there is none.
    """
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"there is no file {name}", hint="`ilu list recipes` shows those that are shipped")
    raise UsageError(f"no recipe {name!r}.{near(name, known)}", hint=f"shipped recipes: {', '.join(known)}; or a file")


def load(kind: type[R], path: Path | None, flags: dict[str, tuple[Key, Any]], sets: list[str]) -> R:
    """Read `path`, write flags (`{"--lr": (("train", "lr"), 1e-4)}`) and `--set` over it, and validate.

    Args:
        kind: the recipe's class, as in `ilu_cli.recipe.schema`.
        path: of the file; None: only flags and `--set`, over the defaults.
        flags: keys and values by the flag that they come from.
        sets: texts `key.path=value`.

    Raises:
        RecipeError: with every problem found.
    """
    layers = read_layers(path) if path else Layers()
    for flag, (key, value) in flags.items():
        layers.put(key, value, flag)
    for text in sets:
        left, equals, right = text.partition("=")
        if not equals or not all(left.split(".")):
            layers.problems.append(Problem(f"--set {text}", "", "write it as key.path=value"))
            continue
        layers.put(tuple(left.split(".")), parse_scalar(right, f"--set {left}: "), f"--set {left}")
    return validate(kind, layers)


def validate(kind: type[R], layers: Layers) -> R:
    """Validate the layers against the schema of a kind of recipe, with all ideas that are registered.

    A key that is wrong is taken out and the rest is validated again, so that impossible combinations are reported in
    the same breath as unknown keys. What is wrong only because it is gone (a list that is empty now) is not told.
    """
    command: str = kind.model_fields["command"].default
    named = layers.data.get("command", command)
    if named != command:
        message = f"this is a recipe for `ilu {named}`, not for `ilu {command}`"
        raise RecipeError([Problem(layers.origin(("command",)), "command", message)])
    model, problems, data = schema(kind), list(layers.problems), json.loads(json.dumps(layers.data, default=str))
    gone: list[Key] = []
    for _ in range(100):  # every round removes at least one key
        try:
            recipe = model.model_validate(data)
        except ValidationError as error:
            bad = [(_raw_key(data, e["loc"]), e) for e in error.errors(include_url=False)]
            problems += [_problem(model, layers, e) for k, e in bad if not any(g[: len(k)] == k for g in gone)]
            removed = [k for k, _ in bad if _remove(data, k)]
            if not removed:
                break
            gone += removed
        else:
            found = [Problem(layers.origin(key), dotted(key), message) for key, message in recipe.problems()]
            problems += found
            if problems:
                break
            return recipe
    raise RecipeError(list({str(p): p for p in problems}.values()))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it back gives the same recipe."""
    return write_yaml(recipe.model_dump())


def digest(recipe: Recipe) -> str:
    """sha256 of the resolved recipe, without what changes no result (`track`)."""
    told = recipe.model_dump(exclude={"track"})
    told["command"] = hashed(told["command"])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _raw_key(data: Any, loc: tuple[int | str, ...]) -> Key:
    """Drop the tags that pydantic puts into a location for a discriminated union: they are not in the YAML.

    They are names of ideas, or begin with `#`, or stand behind a value that is no mapping and no list.
    """
    key: list[str | int] = []
    for part in loc:
        if isinstance(data, (str, int, float)):
            break
        if isinstance(part, str) and part.startswith("#"):
            continue
        if isinstance(data, dict) and part not in data and data.get("name") == part:
            continue
        key.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            data = None
    return tuple(key)


def _remove(data: Any, key: Key) -> bool:
    """Take `key`, or its nearest ancestor that is there, out of `data`. False if there is nothing to take out."""
    node, holder, last = data, None, None
    for part in key:
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if not inside:
            break
        holder, last, node = node, part, node[part]
    if holder is None:
        return False
    del holder[last]
    return True


def _problem(model: type[BaseModel], layers: Layers, error: Any) -> Problem:
    key, kind, context = _raw_key(layers.data, error["loc"]), error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        root = _json_schema(model)
        known = _keys_at(root, layers.data, key[:-1])
        below = [f"{k}.{key[-1]}" for k in known if key[-1] in _below(root, layers.data, (*key[:-1], k))]
        better = f" Did you mean {dotted((*key[:-1], below[0]))!r}?" if below else near(str(key[-1]), known)
        message = f"unknown key.{better} Known here: {', '.join(known)}"
    elif kind == "union_tag_invalid":
        known = [name for t in context["expected_tags"].split(",") if (name := t.strip(" '"))]
        key = (*key, "name")
        message = f"unknown name {brief(context['tag'])}.{near(context['tag'], known)} Known: {', '.join(known)}"
    elif kind == "union_tag_not_found":
        alone = "a name, or " if context["discriminator"] == f"{benchmark_tag.__name__}()" else ""
        message = f"{alone}a mapping with a `name` is needed"
    elif kind == "missing":
        message = "is required"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}, not {brief(error['input'])}"
    return Problem(layers.origin(key), dotted(key), message)


Json = dict[str, Any]
"""A JSON Schema, or a part of one, or data that it describes."""


@functools.lru_cache(16)
def _json_schema(model: type[BaseModel]) -> Json:
    return model.model_json_schema()


def _below(root: Json, data: Any, key: Key) -> list[str]:
    """The keys that are known below `key`, as far as they are there: a component that is not named has none."""
    try:
        return _keys_at(root, data, key)
    except (KeyError, TypeError, IndexError):
        return []


def _keys_at(root: Json, data: Any, key: Key) -> list[str]:
    """The keys that the JSON schema knows at `key`."""
    node = root
    for part in (*key, None):
        while (inner := _inner(root, node, data, part)) is not None:
            node = inner
        if part is None:
            break
        inside = node.get("properties", {})
        node = node["items"] if isinstance(part, int) else inside.get(part) or node["additionalProperties"]
        fits = isinstance(data, (dict, list))
        data = (data.get(part) if isinstance(data, dict) else data[part]) if fits else None
    return list(node.get("properties", {}))


def _inner(root: Json, node: Json, data: Any, part: str | int | None) -> Json | None:
    """What a reference or a union stands for here; None: the node is neither."""
    found: Json | None = None
    if "$ref" in node:
        found = root["$defs"][node["$ref"].rpartition("/")[2]]
    elif "discriminator" in node and isinstance(data, dict):
        found = {"$ref": node["discriminator"]["mapping"][data["name"]]}
    elif "oneOf" in node and isinstance(data, dict):
        found = _form(root, node["oneOf"], data)
    elif "anyOf" in node:
        wanted = ("array",) if isinstance(part, int) else (None, "object", "array")  # None: a reference
        found = next((n for n in node["anyOf"] if n.get("type") in wanted), node["anyOf"][0])
    return found


def _form(root: Json, forms: list[Json], data: Json) -> Json:
    """Of the forms of a union that of this name; of a union without names the first that is a mapping."""
    mappings: list[Json] = [root["$defs"][n["$ref"].rpartition("/")[2]] for n in forms if "$ref" in n]
    names = [n["properties"].get("name", {}).get("const") for n in mappings]
    if not any(names):
        return mappings[0]
    return next((n for n, name in zip(mappings, names) if name == data["name"]), {})
