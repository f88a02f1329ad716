"""What a task file for lm-eval, which may come from anybody, would run or reach; told before anything is loaded.

`!function` and tags of Python name code. Templates run in a sandbox (`ilu_cli.harness.sandbox`) and need no word here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ilu_cli import trust
from ilu_cli.data.root import data_root
from ilu_cli.paths import problem_of_path
from ilu_cli.recipe.harness import PlainLoader

PYTHON = "tag:yaml.org,2002:python/"


def refusal(file: Path) -> str:
    """Why a task file is not taken; "" if it asks for nothing, or `--trust-code` names it. Then its code is recorded.

    What is no YAML at all is left to whoever reads it.
    """
    asked = list(_asked(file, set()))
    if asked and not trust.is_named(file):
        more = f" (and {len(asked) - 1} more)" if len(asked) > 1 else ""
        return f"{asked[0][0]}{more}, so it is taken only if `--trust-code {file}` says so: read it first"
    for code in code_of(file):
        trust.note(Path(code))
    return ""


def code_of(file: Path) -> dict[str, str]:
    """sha256 of a task file that runs code, of the files that it includes, and of those with the code."""
    asked = list(_asked(file, set()))
    files = {file, *(path for _, path in asked if path and path.is_file())} if asked else set()
    return {str(path): trust.digest(path) for path in sorted(files)}


def files_of(file: Path) -> set[Path]:
    """The files that decide what a task file asks: itself, what it includes, its code, and its data that are here."""
    found, left = set[Path](), [file]
    while left:
        at = left.pop()
        if at in found or not at.is_file():
            continue
        found.add(at)
        try:
            text = at.read_text(encoding="utf-8")
            root, config = yaml.compose(text, Loader=PlainLoader), yaml.load(text, Loader=PlainLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):  # its run will say so
            continue
        if isinstance(config, dict):
            left += [at.parent / name for name in _texts(config.get("include"))]
            found |= {code for n in _nodes(root) if n.tag == "!function" and (code := _module(at, n)).is_file()}
            found |= set(data_files(config.get("dataset_path"), config.get("dataset_kwargs")))
    return found


def data_files(path: Any, kwargs: Any) -> list[Path]:
    """The files here that `datasets` reads for a `dataset_path` and its `dataset_kwargs`."""
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    folder, names = kwargs.get("data_dir"), _names(kwargs.get("data_files"))
    whole = next((Path(text) for text in (folder, path) if isinstance(text, str) and text), None)
    if names:
        top = Path(folder if isinstance(folder, str) else ".")
        files = [f for n in names for f in ([top / n] if (top / n).is_file() else _matching(top / n))]
    else:
        files = sorted(whole.rglob("*")) if whole and whole.is_dir() else []
    return [f for f in files if f.is_file()]


def _names(given: Any) -> list[str]:
    """The files that `data_files` names: a text, a list of them, or either by split."""
    lists = given.values() if isinstance(given, dict) else [given]
    return [n for some in lists for n in (some if isinstance(some, list) else [some]) if isinstance(n, str)]


def _matching(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor or ".")
    return sorted(root.glob(str(pattern.relative_to(root)))) if pattern.parts else []


def _module(file: Path, node: yaml.Node) -> Path:
    """The file with the code of a `!function`."""
    return file.parent / f"{str(node.value).rpartition('.')[0].replace('.', '/')}.py"


Asked = tuple[str, Path | None]  # what is asked for, in words, and the file with the code


def _asked(file: Path, seen: set[Path]) -> Iterator[Asked]:
    if file.resolve() in seen:
        return
    seen.add(file.resolve())
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return
    for node in _nodes(root):
        where = f"{file}:{node.start_mark.line + 1}"
        if node.tag == "!function":
            yield f"{where} runs the function {node.value}", _module(file, node)
        elif str(node.tag).startswith(PYTHON):
            yield f"{where} makes a Python object", None
    config = _plain(root)
    for key in {"use_prompt", "class"} & config.keys():
        yield f"{file} takes code or prompts from elsewhere by `{key}`", None
    for name in _texts(config.get("include")):
        if problem := problem_of_path(name):
            yield f"{file} includes {name}, which {problem}", None
        else:
            yield from ((what, path or file.parent / name) for what, path in _asked(file.parent / name, seen))
    kwargs = config.get("dataset_kwargs")
    reached = [*_texts(kwargs), *_texts(config.get("dataset_path"))]
    yield from ((f"{file} reads {name}, which {why}", None) for name in reached if (why := _leaves(file, name)))


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once, however often it is referred to."""
    left, seen = [root] if root else [], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            left += [part for pair in node.value for part in pair]


def _plain(root: yaml.Node | None) -> dict[str, Any]:
    """The keys of the file whose values are texts, lists or mappings of texts; anything else is of no interest."""
    if not isinstance(root, yaml.MappingNode):
        return {}
    return {str(key.value): _value(value, 0) for key, value in root.value}


def _value(node: yaml.Node, depth: int) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if depth > 4:
        return []
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, depth + 1) for item in node.value]
    return [_value(value, depth + 1) for _, value in node.value]


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) and value else []


def _leaves(file: Path, name: str) -> str:
    """How a data file lies beyond the working folder, the task file's, and the data root; "" if it does not."""
    if "://" in name:
        return "is an address on the network"
    if not problem_of_path(name):
        return ""
    here = [Path.cwd(), file.absolute().parent, *filter(None, [data_root()])]
    path = Path(name)
    if path.is_absolute() and ".." not in path.parts and any(path.is_relative_to(folder) for folder in here):
        return ""
    return "lies outside of the working folder, the task file's, and the data root"
