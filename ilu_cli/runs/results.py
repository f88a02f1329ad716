"""How results lie in a run: summaries, an attack's points and what they add up to, the rows behind them, their files.

Each record reads what was written by any version and writes the form that files have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from ilu_cli.errors import UnavailableError
from ilu_cli.metrics.figure import Figure, number, value_of

Row = dict[str, Any]
Role = Literal["forget", "utility"]
Kind = Literal["share", "ratio", "loss"]
"""What a number is, which says how it counts and is shown.

- `share`: a mean over questions of values from 0 to 1, as wrong and right. On the forget topic 1 − it is FQ.
- `ratio`: any other mean, or Σ value / Σ weight.
- `loss`: exp(Σ value / Σ weight), as a perplexity is; differences are relative.
"""

WARNINGS = "warnings.json"  # of the last evaluation, in the results folder of a run
WORDS = {"acc": "accuracy", "ppl": "perplexity"}


def kind_of(metric: str) -> Kind:
    """The kind of a metric by its name, for results of before kinds were kept and tasks of lm-eval that say none."""
    return "share" if metric == "acc" else "loss" if metric.endswith(("ppl", "perplexity")) else "ratio"


class Data(TypedDict, total=False):
    """What is known of a dataset that was read: in a manifest with its role, split and rows, in a summary without."""

    role: str
    name: str
    source: str
    hub: str
    path: str
    split: str | None
    rows: int
    fingerprint: str
    long: str
    chat: bool
    chat_system: str | None
    chat_date: str | None
    truncated: int


@dataclass(frozen=True)
class Number:
    """A number beside a benchmark's headline. `value` may be infinite."""

    value: float
    stderr: float | None
    kind: Kind = "ratio"

    @classmethod
    def read(cls, found: Mapping[str, Any], metric: str) -> Number:
        return cls(value_of(found), found.get("stderr"), found.get("kind") or kind_of(metric))

    def to_json(self) -> Row:
        """The record as it stands in a file; `read` reads it."""
        return {**_figure(self.value, self.stderr), "kind": self.kind}


@dataclass(frozen=True)
class Summary:
    """The result of a benchmark on a model. `more` is what else stands in its file: how it was measured, its key."""

    benchmark: str
    metric: str
    kind: Kind
    role: Role
    value: float
    stderr: float | None
    n: int = 0
    chance: float | None = None
    data: Data = field(default_factory=Data)
    also: Mapping[str, Number] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The metric as people call it."""
        return WORDS.get(self.metric, self.metric)

    @property
    def counts(self) -> bool:
        """Whether it counts in FQ, and so in RA: a share on the forget topic."""
        return self.role == "forget" and self.kind == "share"

    @property
    def up(self) -> bool:
        """Whether a higher number is better, if it is to be kept. Written only where the kind does not tell it."""
        return bool(self.more.get("up", self.kind != "loss"))

    @classmethod
    def read(cls, found: Mapping[str, Any], benchmark: str = "") -> Summary:
        metric = found["metric"]
        return cls(
            found.get("benchmark", benchmark), metric, found.get("kind") or kind_of(metric), found["role"],
            value_of(found), found.get("stderr"), found.get("n", 0), found.get("chance"), found.get("data") or Data(),
            {name: Number.read(other, name) for name, other in found.get("also", {}).items()}, _rest(cls, found),
        )  # fmt: skip

    def to_json(self) -> Row:
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "kind": self.kind,
            "role": self.role,
            **_figure(self.value, self.stderr),
            "also": {name: other.to_json() for name, other in self.also.items()},
            "n": self.n,
            "chance": self.chance,
            "data": self.data,
            **self.more,
        }


@dataclass(frozen=True)
class Learned:
    """FA: the share of right answers on the attack's own task, after so many steps.

    `chance` is the most that one constant answer gets, or guessing among the choices; None in runs of before.
    """

    task: str
    value: float
    stderr: float | None
    n: int
    step: int = 0
    kind: Kind = "share"
    chance: float | None = None

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Learned:
        known = (found.get("task", ""), found["value"], found.get("stderr"), found.get("n", 0), found.get("step", 0))
        return cls(*known, chance=found.get("chance"))

    def to_json(self) -> Row:
        told = {"task": self.task, "value": self.value, "stderr": self.stderr, "n": self.n, "step": self.step}
        return told if self.chance is None else told | {"chance": self.chance}


@dataclass(frozen=True)
class Point:
    """What was measured at one strength of an attack; FA if it was measured there; and its name in words."""

    axis: str
    strength: float
    eval: Mapping[str, Summary]
    fa: Learned | None = None
    label: str | None = None

    @classmethod
    def read(cls, found: Mapping[str, Any], axis: str) -> Point:
        fa = Learned.read(found["fa"]) if found.get("fa") else None
        return cls(axis, found[axis], summaries_of(found["eval"]), fa, found.get("label"))

    def to_json(self) -> Row:
        there = {"fa": self.fa.to_json() if self.fa else None, "label": self.label}
        return {
            self.axis: self.strength,
            "eval": {name: s.to_json() for name, s in self.eval.items()},
            **{k: v for k, v in there.items() if v is not None},
        }

    @property
    def name(self) -> str:
        """See `point_name`."""
        return point_name(self.axis, self.strength)


@dataclass(frozen=True)
class Forgotten:
    """FQ = 1 − the mean share of right answers on the forget benchmarks, at one strength of an attack."""

    strength: float
    value: float
    stderr: float | None


@dataclass(frozen=True)
class AttackResult:
    """What an attack's manifest keeps: its points, and what they add up to.

    `marks` are the strengths that RA is the mean over, `worst` the lowest FQ, and `unattacked` is the strength at which
    nothing was changed yet. `more` is what else stands there: parity, rows left out, seconds.
    """

    kind: str
    axis: str
    points: tuple[Point, ...] = ()
    fa: Learned | None = None
    fq: tuple[Forgotten, ...] = ()
    marks: tuple[float, ...] = ()
    unattacked: float | None = 0
    ra: float | None = None
    worst: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> AttackResult:
        points = found.get("points") or []
        axis = found.get("axis") or next((k for p in points[:1] for k in p if k != "eval"), "steps")
        return cls(
            found.get("kind", ""), axis, tuple(Point.read(p, axis) for p in points),
            Learned.read(found["fa"]) if found.get("fa") else None,
            tuple(Forgotten(f[axis], f["value"], f.get("stderr")) for f in found.get("fq") or []),
            tuple(found.get("marks") or []), found.get("unattacked", 0), found.get("ra"), found.get("worst"),
            _rest(cls, found),
        )  # fmt: skip

    def to_json(self) -> Row:
        return {
            "kind": self.kind,
            "axis": self.axis,
            "points": [p.to_json() for p in self.points],
            "fa": self.fa.to_json() if self.fa else None,
            "fq": [{self.axis: f.strength, "value": f.value, "stderr": f.stderr} for f in self.fq],
            "marks": list(self.marks),
            "unattacked": self.unattacked,
            "ra": self.ra,
            "worst": self.worst,
            **self.more,
        }

    @property
    def after(self) -> list[Forgotten]:
        """FQ at the points after the attack began."""
        return [f for f in self.fq if f.strength != self.unattacked]


def _figure(value: float, stderr: float | None) -> Figure:
    return number(value, math.nan if stderr is None else stderr)


def _rest(cls: type, found: Mapping[str, Any]) -> Row:
    """What a record has no field for."""
    known = {f.name for f in fields(cls)} | {"infinite"}
    return {k: v for k, v in found.items() if k not in known}


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
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        hint = "delete the eval folder and evaluate again"
        raise UnavailableError(f"{path} cannot be read: {error}", hint=hint) from error


def own_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of a benchmark's own metric; those of another number name it."""
    return [r for r in rows if not r.get("metric")]


def summaries_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Summary]:
    """Summaries by benchmark, as a point or a pipeline keeps them."""
    return {name: Summary.read(s, name) for name, s in found.items()}


def read_results(folder: Path) -> dict[str, Summary]:
    """The summaries in a folder of results, by benchmark."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    read = [Summary.read(s) for s in found if isinstance(s, dict) and "benchmark" in s]
    return {s.benchmark: s for s in read}
