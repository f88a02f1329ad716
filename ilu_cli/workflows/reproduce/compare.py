"""Two finished runs, stage by stage, from what is on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from ilu_cli.models.subject import Subject
from ilu_cli.recipe.source import flat, read_layers
from ilu_cli.runs.results import Row, read_rows
from ilu_cli.runs.store import Manifest
from ilu_cli.taskvec.delta import Checkpoint, open_checkpoint
from ilu_cli.workflows.reproduce.recorded import Recorded
from ilu_cli.workflows.reproduce.stages import Pair, Stage, equal_or_not, numbers, stage_of

UNMEASURED = (
    "seconds",
    "eval_seconds",
    "peak_memory_bytes",
    "parity",
    "batches",
    "points",
    "error",
    "reproduces",
    "warnings",
    "chosen",  # stands in the recipe, which both have
    "content",
    "changed_fraction",
)
"""What a result holds of time and place, or holds twice: points are compared as the files of their results."""


def compare(was: Recorded, now: Recorded, parent: Subject | None, tolerances: Mapping[str, float]) -> list[Stage]:
    """Every stage of two runs; losses, numbers and rows as far as the first one has them.

    Args:
        parent: what the run changed, which tells how much it did.
        tolerances: see `ilu_cli.workflows.reproduce.stages.TOLERANCES`.
    """
    found: dict[str, Iterable[Pair]] = {name: equal_or_not(*pair) for name, pair in causes(was, now).items()}
    if was.metrics.is_file():
        found["losses"] = losses(read_rows(was.metrics), read_rows(now.metrics))
    if was.manifest.weights or now.manifest.weights:
        found["weights"] = weights(was, now, parent)
        found["files"] = equal_or_not(was.manifest.beside, now.manifest.beside)
    own = numbers(_numbers(was.manifest.result), _numbers(now.manifest.result), "result: ")
    measured = results(was.eval, now.eval)
    found["metrics"] = chain(own if was.run else (), measured["metrics"])
    found["rows"] = measured["rows"]
    return [stage_of(name, pairs, tolerances) for name, pairs in found.items()]


def causes(was: Recorded, now: Recorded) -> dict[str, tuple[Row, Row]]:
    """What decides a run, before and now, by stage."""
    a, b = was.manifest, now.manifest
    return {
        "recipe": (_recipe(was), _recipe(now)),
        "setting": (_setting(a), _setting(b)),
        "data": (fingerprints(a.data), fingerprints(b.data)),
        "parent": (_parents(a), _parents(b)),
        "code": (_code(a), _code(b)),
        "packages": (a.versions, b.versions),
    }


def _recipe(run: Recorded) -> Row:
    """A recipe by key, without where steps are told and how models were named: their hashes tell which they are."""
    left_out = re.compile(r"track\b|onto$|vectors\.\d+\.run$|model\.ref$|attack\.finetuned$")
    return {k: v for k, v in flat(read_layers(run.recipe).data).items() if not left_out.match(k)}


def _setting(m: Manifest) -> Row:
    return {"seed": m.seed, "processes": m.world_size, "precision": m.precision}


def fingerprints(data: Any) -> Row:
    """The fingerprints of datasets, by place, role and name."""
    return {f"{i}: {d['role']} {d['name']}": d["fingerprint"] for i, d in enumerate(data)}


def _parents(m: Manifest) -> Row:
    """The weights of the parents by role: a built-in model's configuration names the transformers that wrote it."""
    return {f"{i}: {p['role']}": p["weights"] for i, p in enumerate(m.parents)}


def _code(m: Manifest) -> Row:
    """The hashes of plug-ins and other code that was run, by file name."""
    return {Path(name).name: sha for name, sha in (asdict(m).get("trust") or {}).get("code", {}).items()}


def losses(was: list[Row], now: list[Row]) -> Iterator[Pair]:
    """Every number of every step, the first step first. Times are left out."""
    for i, pair in enumerate(zip_longest(was, now, fillvalue=dict[str, Any]()), 1):
        a, b = ({k: v for k, v in row.items() if k not in ("step", "seconds")} for row in pair)
        yield from numbers(a, b, f"step {i}: ")


def weights(was: Recorded, now: Recorded, parent: Subject | None) -> Iterator[Pair]:
    """The files of weights; of those that differ every tensor, in the order of the layers."""
    a, b = was.manifest, now.manifest
    if a.weights == b.weights:
        yield from equal_or_not(a.weights, b.weights)
    else:
        base = open_checkpoint(parent) if parent else None
        yield from tensors(was.checkpoint(), now.checkpoint(), base)
    for step in a.points | b.points:
        yield from equal_or_not(*({f"step {step}: {k}": v for k, v in m.points.get(step, {}).items()} for m in (a, b)))


def tensors(was: Checkpoint, now: Checkpoint, parent: Checkpoint | None) -> Iterator[Pair]:
    """‖now − was‖ / ‖was − parent‖ of every tensor: a share of what the run changed.

    Without a parent, or one that has no such tensor, a share of the tensor itself. ∞ for one that only one side has, or
    that the first run had left as it was.
    """
    for name in sorted(was.names | now.names, key=_by_layer):
        if name not in was.names or name not in now.names or was.shape(name) != now.shape(name):
            theirs, ours = (c.shape(name) if name in c.names else None for c in (was, now))
            yield Pair(name, theirs, ours, math.inf)
            continue
        a, b = (c.weight(name).exact() for c in (was, now))
        gap = float((b - a).norm())
        size = _size(a, parent.weight(name).exact() if parent and name in parent.names else None)
        by = gap / size if size > 0 and math.isfinite(gap) else math.inf  # what is no number is not close
        yield Pair(name, size, gap, 0.0 if gap == 0 else by)


def _size(weight: Tensor, before: Tensor | None) -> float:
    same = before is not None and before.shape == weight.shape
    return float((weight - before).norm() if same and before is not None else weight.norm())


def _by_layer(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def results(was: Path, now: Path) -> dict[str, Iterator[Pair]]:
    """Two folders of results: their numbers, and the rows behind them."""
    return {"metrics": _metrics(was, now), "rows": rows(was, now)}


def _metrics(was: Path, now: Path) -> Iterator[Pair]:
    """The numbers of every summary that both folders have."""
    for path in _summaries(was):
        if (now / path).is_file():
            yield from numbers(_figures(was / path), _figures(now / path), f"{path.with_suffix('')}: ")


def _numbers(result: Row) -> Row:
    kept = flat({k: v for k, v in result.items() if k not in UNMEASURED}) if result else {}
    return {k: v for k, v in kept.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def unmatched(was: Path, now: Path) -> list[str]:
    """The results of the first folder that the second has not."""
    return [f"{p.with_suffix('')}: only one of them has it" for p in _summaries(was) if not (now / p).is_file()]


def _summaries(folder: Path) -> list[Path]:
    found = [p for p in sorted(folder.rglob("*.json")) if "benchmark" in json.loads(p.read_text(encoding="utf-8"))]
    return [p.relative_to(folder) for p in found]


def _figures(path: Path) -> Row:
    found = json.loads(path.read_text(encoding="utf-8"))
    also = {name: f.get("value") for name, f in (found.get("also") or {}).items()}
    return {found["metric"]: found["value"], **also, "n": found["n"]}


def rows(was: Path, now: Path) -> Iterator[Pair]:
    """Every row of every benchmark that both folders have, in order."""
    for path in sorted(was.rglob("*.rows.jsonl")):
        name = path.relative_to(was)
        if not (now / name).is_file():
            continue
        pairs = zip_longest(read_rows(path), read_rows(now / name))
        for i, (a, b) in enumerate(pairs, 1):
            yield Pair(f"{name}:{i}", a, b, 0.0 if a == b else math.inf)
