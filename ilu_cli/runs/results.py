"""How results lie in a run: the names of points and files, summaries, and the rows that they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ilu_cli.errors import UnavailableError

Summary = dict[str, Any]
Row = dict[str, Any]


def point_name(axis: str, strength: float) -> str:
    """The folder of a point of an attack: `steps-0000015`, `sigma-0.1`."""
    return f"{axis}-{strength:07d}" if isinstance(strength, int) else f"{axis}-{strength:g}"


def stem(name: str) -> str:
    """How a benchmark's files are called: by its name, or that of its YAML file."""
    return Path(name).stem if name.endswith(".yaml") else name


def summary_file(folder: Path, name: str) -> Path:
    """Where the summary of a benchmark lies in a folder of results."""
    return folder / f"{stem(name)}.json"


def rows_file(folder: Path, name: str) -> Path:
    """Where the rows of a benchmark lie, one a line."""
    return folder / f"{stem(name)}.rows.jsonl"


def read_rows(path: Path, *, needed: bool = False) -> list[Row]:
    """The lines of a jsonl file; none if it is missing and not `needed`.

    Raises:
        UnavailableError: if it cannot be read.
    """
    if not needed and not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        hint = "delete the eval folder and evaluate again"
        raise UnavailableError(f"{path} cannot be read: {error}", hint=hint) from error


def read_results(folder: Path) -> dict[str, Summary]:
    """The summaries in a folder of results, by benchmark."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    return {s["benchmark"]: s for s in found if isinstance(s, dict) and "benchmark" in s}
