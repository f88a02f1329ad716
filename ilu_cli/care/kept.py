"""The warnings that finished runs keep."""

from __future__ import annotations

from collections.abc import Iterable

from ilu_cli import care
from ilu_cli.runs.files import read_json
from ilu_cli.runs.results import WARNINGS, Row
from ilu_cli.runs.run import Run


def kept(runs: Iterable[Run]) -> list[care.Warned]:
    """What runs say of themselves, and the last evaluation of their models."""
    found: list[Row] = []
    for run in runs:
        found += run.manifest.result.get("warnings") or []
        if (path := run.eval / WARNINGS).is_file():
            run.check(f"eval/{WARNINGS}")
            found += read_json(path).get("warnings") or []
    return care.once(care.read(found))
