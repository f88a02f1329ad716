"""Malformed inputs by kind: each is tried in a fork of its own, within 5 s and 1 GB, and judged by itself."""

import sys
from multiprocessing.connection import Connection
from pathlib import Path

from malformed import data, grids, manifests, models, names, plugins, recipes, requirements, sets, tasks
from malformed.judge import Input, Judge, judged

KINDS = {
    "recipes that are no YAML": recipes.syntax,
    "recipes with wrong keys and values": recipes.content,
    "--set": sets.inputs,
    "--require": requirements.inputs,
    "manifests": manifests.inputs,
    "rows and data files": data.inputs,
    "model folders": models.inputs,
    "task files of lm-eval": tasks.inputs,
    "plug-ins": plugins.inputs,
    "pipelines and suites": grids.inputs,
    "names": names.inputs,
}

__all__ = ["KINDS", "Input", "Judge", "judged"]


def serve(asked: Connection, root: Path, tests: Path) -> None:
    """Judge what is asked for, (kind, first, step), until nobody asks any more."""
    sys.path.insert(0, str(tests))  # where conftest lies
    judge = Judge(root)
    while True:
        try:
            kind, first, step = asked.recv()
        except EOFError:
            return
        found = judge.tried(list(KINDS[kind]())[first::step])
        asked.send([(given.name, wrong, done.text[-300:]) for given, done, wrong in found if wrong])
