"""YAML of people we do not know: bounded in length, depth and aliases; keys are text; what is wrong has a line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ilu_cli.errors import brief

LONGEST = 200_000  # characters
DEEPEST = 48  # levels
MOST = 100_000  # values, each alias counted as what it stands for
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """What is wrong with a text, and in which line of it, counted from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a number (YAML 1.1: a text), a day as text, and that stops in time.

    `010` and `1:30` are texts too, as 8 and 90, which they are in YAML 1.1, is what nobody means.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise YamlError(self.line + 1, f"more than {DEEPEST} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (YamlError, yaml.YAMLError):
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            word = node.tag.rpartition(":")[2]
            raise YamlError(_line(node), f"{brief(node.value, 60)} is no {word} that can be read") from error


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts into quotes what `_Loader` would not read as the text that it is, as `12e4567`."""


_Loader.yaml_implicit_resolvers = {
    k: [(tag, pattern) for tag, pattern in v if tag.rpartition(":")[2] not in ("timestamp", "int", "float")]
    for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")
FLOAT = re.compile(r"[-+]?(([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*"
                   r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")  # fmt: skip
for kind in (_Loader, _Dumper):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    kind.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))


def write_yaml(value: Any) -> str:
    """A value as a text of which `read_yaml` makes the same, and so does any other reader of YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(text: str, longest: int = LONGEST) -> tuple[yaml.Node | None, Any]:
    """The one document of a text: its nodes, which know their lines, and its value. Nothing else than data is made.

    Raises:
        YamlError: if it is not YAML, or would be more than a recipe needs.
    """
    if len(text) > longest:
        raise YamlError(1, f"it has {len(text):,} characters; at most {longest:,} are read")
    line = 1
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, None
            _measured(root, {})
            return root, loader.construct_document(root)
        finally:
            line = loader.line + 1
            loader.dispose()
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1
        raise YamlError(at, f"the character U+{ord(text[error.position]):04X} may not stand in YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(line, f"not valid YAML: {error}") from error


def _measured(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. On the way keys become text, and what is no plain data is refused.

    `known` are the sizes by node; 0 while a node is being measured, which only an alias within itself meets.
    """
    if (size := known.get(id(node))) is not None:
        if not size:
            raise YamlError(_line(node), "the anchor here holds an alias of itself")
        return size
    known[id(node)] = 0
    if node.tag not in TAGS:
        raise YamlError(_line(node), f"the tag {brief(node.tag, 60)} is not known; only plain values are read")
    size = 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(_line(key), "a key is a word, not a list or a mapping")
            _check_text(key)
            key.tag = key.tag if key.tag == MERGE else TEXT
            size += 1 + _measured(value, known)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measured(item, known) for item in node.value)
    else:
        _check_text(node)
    if size > MOST:
        raise YamlError(_line(node), f"with its aliases this stands for more than {MOST:,} values")
    known[id(node)] = size
    return size


def _check_text(node: yaml.Node) -> None:
    if HALF_A_PAIR.search(node.value):
        raise YamlError(_line(node), f"{brief(node.value, 60)} holds half a surrogate pair, which is no text")


def _line(at: Any) -> int:
    return int(at.start_mark.line) + 1
