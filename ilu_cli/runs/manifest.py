"""What a run was made from, and whether a manifest can be so: types, times, names, and no circle in the lineage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Any

from ilu_cli.errors import UNSEEN, brief
from ilu_cli.runs.files import ModelRecord, digest_of
from ilu_cli.runs.results import AttackResult, Data
from ilu_cli.trust import Trusted

if TYPE_CHECKING:
    from ilu_cli.runs.run import Run

FORMAT = 1
PACKAGES = ("ilu", "torch", "transformers", "accelerate", "datasets", "safetensors")
TEXTS = ("id", "command", "status", "label", "created", "recipe_sha256", "asked_sha256", "precision")
PARENT = {"role": str, "kind": str, "id": str, "path": str, "weights": dict}
DATA = {"role": str, "name": str, "source": str}


@dataclass
class Manifest:
    """What a run was made from. `recipe_sha256` is that of its recipe.yaml, with all that was left open filled in, and
    `asked_sha256` that of the recipe as it was asked for; of an unlearning run that of before the machine decided.
    `parents` are `{role, kind, id, path, weights, digest}`.

    `weights` maps file name to sha256, and `beside` the other files of the checkpoint that decide an answer.
    `inputs` are the files and hub datasets that it read (`ilu_cli.workflows.needs.inputs`). `points` are the weights at
    the intermediate steps that were kept, by step. `listed`: the run has a list of its files (`ilu_cli.runs.ledger`).
    `trust` is whose code could run (`ilu_cli.trust.record`).
    `base` is the original that the lineage began with, and `never` the model that never knew, if one is named.
    `wanted` is, of a reference line that is made for another run, the model that is attacked next, and its `out`.
    `clear_of` is what an attack keeps of the unlearning recipes whose environments it stays clear of.
    """

    id: str
    command: str
    status: str = "running"
    label: str = ""
    created: str = ""
    finished: str | None = None
    format: int = FORMAT
    recipe_sha256: str = ""
    asked_sha256: str = ""
    base: ModelRecord = field(default_factory=ModelRecord)
    never: ModelRecord = field(default_factory=ModelRecord)
    parents: list[ModelRecord] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    points: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    wanted: ModelRecord = field(default_factory=ModelRecord)
    trust: Trusted = field(default_factory=Trusted)
    clear_of: list[Any] = field(default_factory=list)
    seed: int = 0
    world_size: int = 1
    precision: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """One hash of everything that decides the model's answers; None for a run that recorded its weights only."""
        base = self.parents[0].get("digest") if "adapter_config.json" in self.beside else None
        return digest_of(self.weights, self.beside, base) if self.beside else None

    @property
    def made_from(self) -> list[str]:
        """The ids of the runs and models among the parents; of a kept step, `RUN@40`, that of its run."""
        return [split_step(p["id"])[0] if p["kind"] == "run" else str(p["id"]) for p in self.parents]


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
    for key in ("base", "never", "weights", "beside", "points", "versions", "wanted", "result", "trust"):
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


def split_step(text: str) -> tuple[str, int | None]:
    """`RUN@40` as RUN and 40."""
    found = re.fullmatch(r"(.+)@(\d+)", text)
    return (found[1], int(found[2])) if found else (text, None)


def now() -> str:
    """The time as UTC in ISO format."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    return {name: version(name) for name in PACKAGES}


@cache
def version(name: str) -> str:
    """The installed version of a package, or "not installed"; looked up once, for to read its metadata takes long."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
