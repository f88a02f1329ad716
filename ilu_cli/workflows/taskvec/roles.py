"""The checkpoints around a run: the original, the unlearned model, fine-tunings of both, and the points on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import Subject, is_adapter, lineage, of_run, original_of
from ilu_cli.runs.files import beside_hashes, weight_hashes
from ilu_cli.runs.lineage import reference_lines
from ilu_cli.runs.results import AttackResult
from ilu_cli.runs.store import Run, Store

UNLEARNS = ("unlearn", "taskvec apply")  # commands whose result is taken for an unlearned model


@dataclass
class Roles:
    """θo, θu, θ_o^ft and θ_u^ft by role, as far as they exist, and what was passed over."""

    by_name: dict[str, Subject]
    notes: list[str] = field(default_factory=list)

    def vectors(self) -> dict[str, tuple[str, str]]:
        """The task vectors that these checkpoints define, as name: (start, end) (arXiv 2506.01339, sec. 5)."""
        known = {"u": ("original", "unlearned"), "ft": ("original", "finetuned"), "u→ft": ("unlearned", "attacked")}
        return {name: ends for name, ends in known.items() if ends[1] in self.by_name}


@dataclass(frozen=True)
class Waypoint:
    """A checkpoint on the way of an attack: how strong the attack was there, and where it lies."""

    role: str
    axis: str
    strength: int
    subject: Subject


def comparable(run: Run) -> bool:
    """Whether a run is worth comparing: an unlearned model, or an attack on a run, with its weights kept."""
    if not (run.complete and run.manifest.weights):
        return False
    return run.manifest.command in UNLEARNS or run.manifest.parents[0]["kind"] == "run"


def find_roles(subject: Subject, store: Store) -> Roles:
    """The checkpoints around a run: its original, the unlearned model, and fine-tunings of both by the same attack.

    Raises:
        UnavailableError: if there is no unlearned model in the lineage.
    """
    unlearned = next((s for s in reversed(lineage(subject)) if s.run and s.run.manifest.command in UNLEARNS), None)
    if unlearned is None:
        raise UnavailableError(f"{subject.label} does not descend from an unlearned model", hint="run `ilu unlearn`")
    original = original_of(subject)
    roles = Roles({"original": original, "unlearned": unlearned})
    attacks = [r for r in reversed(store.runs()) if r.complete and r.manifest.command == "attack"]
    if subject.run and subject.run.manifest.command == "attack":
        attacked: Run | None = subject.run
    else:
        attacked = _first_with_weights([r for r in attacks if r.manifest.parents[0]["id"] == unlearned.label], roles)
    if attacked is None:
        return roles
    lines = reference_lines(attacked.manifest, original.record("original"), attacks)
    finetuned = _first_with_weights(lines, roles)
    if finetuned:
        roles.by_name["finetuned"] = of_run(finetuned)
    roles.by_name["attacked"] = of_run(attacked)
    return roles


def _first_with_weights(runs: Iterable[Run], roles: Roles) -> Run | None:
    for run in runs:
        if run.manifest.weights:
            return run
        roles.notes.append(f"{run.id} is passed over: it kept no weights (keep: none)")
    return None


def points_of(role: str, subject: Subject) -> list[Waypoint]:
    """The intermediate checkpoints of an attack run, weakest first; where it began and ended has a role of its own.

    Raises:
        UnavailableError: if the name of a folder among them says no strength.
    """
    if subject.run is None or not (folder := subject.run.path / "points").is_dir():
        return []
    subject.run.check("points")
    points = [_point(role, path, subject) for path in sorted(folder.iterdir()) if path.is_dir()]
    last = max((p.strength for p in points), default=0)
    return [p for p in points if 0 < p.strength < last]


def _point(role: str, path: Path, subject: Subject) -> Waypoint:
    axis, _, digits = path.name.rpartition("-")
    if not (axis and digits.isdigit()):
        raise UnavailableError(f"{path} is no checkpoint of an attack: its name should be like steps-0000015")
    label = f"{subject.label}@{int(digits)}"
    base = subject.base if is_adapter(path) else None
    weights = weight_hashes(path) if base else {}  # of an adapter a merged copy is known by them
    point = replace(subject, label=label, folder=path, weights=weights, beside=beside_hashes(path), base=base)
    return Waypoint(role, axis, int(digits), point)


def forget_accuracy(subject: Subject) -> dict[int, float]:
    """Accuracy on the forget benchmarks at each strength of an attack run: 1 − FQ."""
    fq = AttackResult.read(subject.run.manifest.result).fq if subject.run else ()
    return {int(f.strength): 1 - f.value for f in fq}
