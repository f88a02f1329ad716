"""The names of lm-eval's tasks, read from its YAML files: importing it and building its own index takes far longer."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path

import yaml

KEY = re.compile(r"""^["']?(task|group|tag)["']?:[ \t]*(.*(?:\n[ \t]*- .*)*)""", re.MULTILINE)
NAME = re.compile(r"[\w./:+-]+")


@functools.cache
def harness_names() -> dict[str, Path]:
    """Every task, group and tag of the installed lm-eval, and the folder that defines it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return {}
    root, found = Path(spec.submodule_search_locations[0]) / "tasks", dict[str, Path]()
    for path in sorted(root.rglob("*.yaml")):
        folder = root / path.relative_to(root).parts[0]
        for key, value in KEY.findall(path.read_text(encoding="utf-8")):
            if key == "tag" or "\n" not in value:  # a list under `task` names the members of a group
                for name in NAME.findall(value.split("#")[0]):
                    found.setdefault(name, folder)
    return found


def own_metrics(module: str) -> set[str]:
    """The metrics of a built-in lm-eval task, read from the YAML file beside its module; empty if there is none."""
    path = Path(sys.modules[module].__file__ or "").with_suffix(".yaml")
    if not path.is_file():
        return set()
    said = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
    chance = {"chance"} if "chance" in said["metadata"] else set()
    return {said["metric_list"][0]["metric"]} | chance


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the names of functions as text, as lm-eval's files need it."""


PlainLoader.add_constructor("!function", lambda _, node: str(node.value))
