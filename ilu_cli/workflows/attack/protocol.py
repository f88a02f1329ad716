"""The protocol of one attack run: what is evaluated when, and what the points add up to."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ilu_cli import registry
from ilu_cli.engine.accel import backend
from ilu_cli.models.save import save_checkpoint
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.runs.lock import turn
from ilu_cli.runs.results import (
    AttackResult,
    Forgotten,
    Learned,
    Point,
    Summary,
    point_name,
    read_rows,
    rows_file,
    summary_file,
)
from ilu_cli.workflows.attack.attempt import Attempted, unseen
from ilu_cli.workflows.evaluate import results_folder


class Follow:
    """The protocol of one run: evaluate before the attack, wherever it yields, and in full where it ends."""

    def __init__(self, attempt: Attempted, recipe: AttackRecipe, known: Sequence[Point] = ()) -> None:
        """`known` are the points of an earlier process, which are not scored again unless the attack yields them."""
        self.attempt, self.recipe, self.run = attempt, recipe, attempt.run
        self.entry = registry.attack[recipe.attack.name]
        self.axis: str = self.entry.declared.strength
        self.points = list(known)
        self.at = known[-1].strength if known else self.entry.declared.unattacked
        self.seconds = 0.0

    def results(self) -> Iterator[AttackResult]:
        """Follow the attack: after each point the points so far, and at its end what they add up to."""
        declared, attempt = self.entry.declared, self.attempt
        attempt.fa_at = {p.fa.step: p.fa for p in self.points if p.fa}
        if declared.unattacked is not None and not self.points:
            yield self._with(Point(self.axis, declared.unattacked, self._unattacked()))
        for strength in self.entry.obj(attempt, **self.recipe.attack.params()):
            scored = self._score(strength, self._names(self.recipe.eval.at == "all"))
            fa = attempt.fa_at.get(strength) if declared.access == "training" else None
            yield self._with(Point(self.axis, strength, scored, fa, attempt.label))
            if self.recipe.keep == "points":
                folder = self.run.path / "points" / point_name(self.axis, strength)
                folder.parent.mkdir(exist_ok=True)
                save_checkpoint(attempt.saved, attempt.tokenizer, folder, write=backend().main)
        self._complete()
        fa = attempt.fa_at[max(attempt.fa_at)] if attempt.fa_at else None
        known = result_of(self.points, fa, declared.unattacked, quarters=declared.access == "training")
        yield replace(known, kind=self.entry.name, more={"eval_seconds": round(self.seconds, 1)})

    def _with(self, point: Point) -> AttackResult:
        """The points so far, with this one in place of an earlier one of its strength, whose utility stays.

        An attack that asks a part of the questions yields the point before it once more, which stays the first.
        """
        unattacked = self.entry.declared.unattacked
        was = next((p for p in self.points if p.strength == point.strength), None)
        kept = {n: s for n, s in was.eval.items() if s.role != "forget"} if was else {}
        point, rest = replace(point, eval={**kept, **point.eval}), [p for p in self.points if p is not was]
        self.points = [point, *rest] if point.strength == unattacked else [*rest, point]
        self.at = point.strength
        return AttackResult(self.entry.name, self.axis, tuple(self.points), unattacked=unattacked)

    def _complete(self) -> None:
        """Score at the last point what was left out there, and say of the first what the attack has not taught."""
        at, last = next((i, p) for i, p in enumerate(self.points) if p.strength == self.at)
        rest = self._score(last.strength, [n for n in self._names(True) if n not in last.eval])
        self.points[at] = replace(last, eval={**last.eval, **rest})
        first = self.points[0]
        if first.strength == self.entry.declared.unattacked:
            self.points[0] = replace(first, eval=self._with_unseen(first.strength, first.eval))

    def _names(self, every: bool) -> list[str]:
        """The benchmarks to score: those of the forget topic, and if `every` the others, as far as they can change."""
        attempt, known = self.attempt, self.attempt.evaluation.benchmarks
        every = every and self.entry.declared.utility
        if attempt.items is not None or attempt.reader is not None:
            asked = list(attempt.items or attempt.questions())
            return asked + [n for n, bench in known.items() if every and bench.role != "forget"]
        forget = [n for n, bench in known.items() if every or bench.role == "forget"]
        return forget or list(known)

    def _score(self, strength: float, names: list[str]) -> dict[str, Summary]:
        """Evaluate the model as it is now; keep the rows in the run's eval/<axis>-<strength>/."""
        attempt, began = self.attempt, time.monotonic()
        folder = self.run.eval / point_name(self.axis, strength)
        if backend().main and names:
            attempt.note(f"{self.axis} {attempt.label or strength}: scoring {', '.join(names)}")
        found = {}
        for name in names:
            items = (attempt.items or {}).get(name)
            scorer = attempt.reader or attempt.scorer
            found[name] = attempt.evaluation.score(name, f"{self.run.id}@{strength}", scorer, folder, items)
        found = self._with_unseen(strength, found)
        self.seconds += time.monotonic() - began
        return found

    def _with_unseen(self, strength: float, found: Mapping[str, Summary]) -> dict[str, Summary]:
        """A point's results, those on the forget topic with the accuracy on what the attack has not taught."""
        folder, told = self.run.eval / point_name(self.axis, strength), dict(found)
        for name, summary in found.items() if backend().main else ():
            rows = read_rows(rows_file(folder, name)) if summary.role == "forget" else []
            if left := unseen(self.attempt.taught, rows):
                told[name] = replace(summary, more={**summary.more, "unseen": left})
        return told

    def _unattacked(self) -> dict[str, Summary]:
        """The subject's own results, from its eval folder if they are known there by its digest, else kept there."""
        attempt, subject, found = self.attempt, self.attempt.subject, {}
        assert self.entry.declared.unattacked is not None, "asked only where the axis has such a point"
        folder = self.run.eval / point_name(self.axis, self.entry.declared.unattacked)
        store = results_folder(subject)
        b, names = backend(), self._names(True)
        with turn(store, f"the results of {subject.label}", attempt.note) if b.main else nullcontext():
            for name in names:
                known = b.share(attempt.evaluation.known(name, subject.digest, store) if b.main else None)
                if known is None:
                    attempt.note(f"before the attack: scoring {name}")
                    known = attempt.evaluation.score(name, subject.digest, attempt.scorer, store)
                found[name] = known
                if b.main:
                    copy_results(name, store, folder)
        return found


def copy_results(name: str, source: Path, target: Path) -> None:
    """Copy summary and rows of a benchmark."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (summary_file(source, name), rows_file(source, name)):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def result_of(points: Sequence[Point], fa: Learned | None, unattacked: float | None, *, quarters: bool) -> AttackResult:
    """FA; FQ = 1 − accuracy on the forget benchmarks at each point; RA and the worst FQ of the attacked points.

    arXiv 2506.01339: RA is the mean FQ at the first-quartile, median and final checkpoints (`quarters`). For other
    attacks it is the mean over all strengths. `marks` are the strengths that the mean is over. A forget benchmark
    counts if its metric is a share.
    """
    fq = [f for p in points if (f := forgotten(p)) is not None]
    found = AttackResult("", points[0].axis, tuple(points), fa, tuple(fq), unattacked=unattacked)
    attacked = {f.strength: f.value for f in found.after}
    marks = list(attacked)
    if quarters and marks:
        final = max(marks)
        marks = sorted({min(attacked, key=lambda s: abs(s - q * final)) for q in (0.25, 0.5, 1.0)})
    over = [attacked[s] for s in marks]
    ra = sum(over) / len(over) if over else None
    return replace(found, marks=tuple(marks), ra=ra, worst=min(attacked.values(), default=None))


def forgotten(point: Point) -> Forgotten | None:
    """FQ at a point, with the error of the mean over its forget benchmarks; None if none of them is a share."""
    forget = [s for s in point.eval.values() if s.counts]
    if not forget:
        return None
    errors = [s.stderr for s in forget if s.stderr is not None]
    error = sum(e**2 for e in errors) ** 0.5 / len(errors) if len(errors) == len(forget) else None
    return Forgotten(point.strength, 1 - sum(s.value for s in forget) / len(forget), error)
