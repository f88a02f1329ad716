"""The names of lm-eval's tasks, read from its YAML files: importing it and building its own index takes far longer."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

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
