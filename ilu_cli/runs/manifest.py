"""Whether what a manifest says can be so: types, times, names, and no circle in the lineage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ilu_cli.errors import UNSEEN, brief
from ilu_cli.runs.results import AttackResult

if TYPE_CHECKING:
    from ilu_cli.runs.run import Manifest, Run

TEXTS = ("id", "command", "status", "label", "created", "recipe_sha256", "asked_sha256", "precision")
PARENT = {"role": str, "kind": str, "id": str, "path": str, "weights": dict}
DATA = {"role": str, "name": str, "source": str}


def check_manifest(m: Manifest) -> None:
    """Check the types of all that commands read.

    Raises:
        ValueError: that names the first key which is not as it was written.
    """
    for key in TEXTS:
        _typed(key, getattr(m, key), str)
    if not m.id or UNSEEN.search(m.id) or "/" in m.id:
        raise ValueError(f"id: {brief(m.id)} is no name of a run")
    for key in ("created", "finished"):
        if (time := getattr(m, key)) is not None:
            _time(key, time)
    for key in ("base", "weights", "beside", "points", "versions", "wanted", "result", "trust"):
        _typed(key, getattr(m, key), dict)
    for key in ("weights", "beside", "versions"):
        _texts(key, getattr(m, key))
    for step, weights in m.points.items():
        _typed(f"points.{step}", weights, dict)
        int(step)
    for key in ("seed", "world_size"):
        _typed(key, getattr(m, key), int)
    _records("parents", m.parents, PARENT)
    _records("data", m.data, DATA)
    _texts("inputs", dict(enumerate(_typed("inputs", m.inputs, list))))
    if m.command == "attack" and m.status == "complete":
        AttackResult.read(m.result)


def _typed(key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key}: {brief(value, 60)} is no {kind.__name__}")
    return value


def _texts(key: str, values: dict[Any, Any]) -> None:
    for name, value in values.items():
        _typed(f"{key}.{name}", value, str)


def _time(key: str, value: Any) -> None:
    try:
        aware = datetime.fromisoformat(_typed(key, value, str)).tzinfo is not None
    except ValueError as error:
        raise ValueError(f"{key}: {brief(value, 60)} is no time") from error
    if not aware:
        raise ValueError(f"{key}: {brief(value, 60)} has no time zone")


def _records(key: str, values: Any, known: Mapping[str, type]) -> None:
    for i, record in enumerate(_typed(key, values, list)):
        for name, kind in known.items():
            if name not in _typed(f"{key}.{i}", record, dict):
                raise ValueError(f"{key}.{i} has no {name!r}")
            _typed(f"{key}.{i}.{name}", record[name], kind)


def circles(runs: Iterable[Run]) -> list[list[str]]:
    """The ids of runs that were made from one another, by circle."""
    above = {run.id: run.manifest.made_from for run in runs}
    found: list[list[str]] = []
    done: set[str] = set()
    for start in above:
        chain, at = list[str](), start
        while at in above and at not in chain and at not in done:
            chain.append(at)
            at = (above[at] or [""])[0]
        if at in chain:
            found.append(chain[chain.index(at) :])
        done |= set(chain)
    return found
