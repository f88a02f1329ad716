"""The protocol of one attack run: what is evaluated when, and what the points add up to."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.engine.accel import backend
from ilu_cli.models.load import save_checkpoint
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.runs.results import point_name, read_rows, rows_file, summary_file
from ilu_cli.runs.store import Run
from ilu_cli.workflows.attack.attempt import Attempted, unseen
from ilu_cli.workflows.evaluate import results_folder


class Follow:
    """The protocol of one run: evaluate before the attack, wherever it yields, and in full where it ends."""

    def __init__(self, attempt: Attempted, run: Run, recipe: AttackRecipe) -> None:
        self.attempt, self.run, self.recipe = attempt, run, recipe
        self.entry = registry.attack[recipe.attack.name]
        self.axis: str = self.entry.declared.strength
        self.points: list[dict[str, Any]] = run.manifest.result["points"]
        self.seconds = 0.0

    def all(self) -> None:
        """Follow the attack to its end, and put the result into the manifest."""
        declared, attempt = self.entry.declared, self.attempt
        attempt.fa_at = {p["fa"]["step"]: p["fa"] for p in self.points if "fa" in p}
        if declared.unattacked is not None and not self.points:
            self._keep({self.axis: declared.unattacked, "eval": self._unattacked()})
        for strength in self.entry.obj(attempt, **self.recipe.attack.params()):
            names = self._names(self.recipe.eval.at == "all")
            point = {self.axis: strength, "eval": self._score(strength, names)}
            if strength in attempt.fa_at and declared.access == "training":
                point["fa"] = attempt.fa_at[int(strength)]
            if attempt.label is not None:
                point["label"] = attempt.label
            self._keep(point)
            if self.recipe.keep == "points" and backend().main:
                folder = self.run.path / "points" / point_name(self.axis, strength)
                folder.parent.mkdir(exist_ok=True)
                save_checkpoint(attempt.saved, attempt.tokenizer, folder)
        first, last = self.points[0], self.points[-1]
        rest = [n for n in self._names(True) if n not in last["eval"]]
        last["eval"] |= self._score(last[self.axis], rest)
        if first[self.axis] == declared.unattacked:
            self._tell_unseen(first[self.axis], first["eval"])
        fa = attempt.fa_at[max(attempt.fa_at)] if attempt.fa_at else None
        marks = declared.access == "training"
        self.run.manifest.result |= result_of(self.points, fa, declared.unattacked, quarters=marks)
        self.run.manifest.result["eval_seconds"] = round(self.seconds, 1)

    def _names(self, every: bool) -> list[str]:
        """The benchmarks to score: those of the forget topic, and if `every` the others, as far as they can change."""
        attempt, known = self.attempt, self.attempt.evaluation.benchmarks
        if attempt.items is not None or attempt.reader is not None:
            return list(attempt.items or attempt.questions())
        every = every and self.entry.declared.utility
        forget = [n for n, bench in known.items() if every or bench.role == "forget"]
        return forget or list(known)

    def _keep(self, point: dict[str, Any]) -> None:
        self.points[:] = [p for p in self.points if p[self.axis] != point[self.axis]] + [point]
        if backend().main:
            self.run.save()

    def _score(self, strength: float, names: list[str]) -> dict[str, Any]:
        """Evaluate the model as it is now; keep the rows in the run's eval/<axis>-<strength>/."""
        attempt, began = self.attempt, time.monotonic()
        folder = self.run.eval / point_name(self.axis, strength)
        if backend().main and names:
            attempt.note(f"{self.axis} {attempt.label or strength}: scoring {', '.join(names)}")
        found = {}
        for name in names:
            items = attempt.items[name] if attempt.items is not None else None
            scorer = attempt.reader or attempt.scorer
            found[name] = attempt.evaluation.score(name, f"{self.run.id}@{strength}", scorer, folder, items)
        self._tell_unseen(strength, found)
        self.seconds += time.monotonic() - began
        return found

    def _tell_unseen(self, strength: float, found: dict[str, Any]) -> None:
        """Put beside a point's results on the forget topic the accuracy on what the attack has not taught."""
        folder = self.run.eval / point_name(self.axis, strength)
        for name, summary in found.items() if backend().main else ():
            rows = read_rows(rows_file(folder, name)) if summary["role"] == "forget" else []
            if left := unseen(self.attempt.taught, rows):
                summary["unseen"] = left

    def _unattacked(self) -> dict[str, Any]:
        """The subject's own results, from its eval folder if they are known there by its digest, else kept there."""
        attempt, subject, found = self.attempt, self.attempt.subject, {}
        assert self.entry.declared.unattacked is not None, "asked only where the axis has such a point"
        folder = self.run.eval / point_name(self.axis, self.entry.declared.unattacked)
        store = results_folder(subject)
        for name in self._names(True):
            known = attempt.evaluation.known(name, subject.digest, store)
            if known is None:
                attempt.note(f"before the attack: scoring {name}")
                known = attempt.evaluation.score(name, subject.digest, attempt.scorer, store)
            found[name] = known
            if backend().main:
                copy_results(name, store, folder)
        return found


def copy_results(name: str, source: Path, target: Path) -> None:
    """Copy summary and rows of a benchmark."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (summary_file(source, name), rows_file(source, name)):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def result_of(
    points: list[dict[str, Any]], fa: dict[str, Any] | None, unattacked: float | None, *, quarters: bool
) -> dict[str, Any]:
    """FA; FQ = 1 − accuracy on the forget benchmarks at each point; RA and the worst FQ of the attacked points.

    arXiv 2506.01339: RA is the mean FQ at the first-quartile, median and final checkpoints (`quarters`). For other
    attacks it is the mean over all strengths. `marks` are the strengths that the mean is over.
    """
    axis, fq = next(iter(points[0])), []
    for p in points:
        forget = [s for s in p["eval"].values() if s["role"] == "forget" and s["metric"] == "acc"]
        if forget:
            value, errors = 1 - sum(s["value"] for s in forget) / len(forget), [s["stderr"] for s in forget]
            error = None if None in errors else sum(e**2 for e in errors) ** 0.5 / len(errors)
            fq.append({axis: p[axis], "value": value, "stderr": error})
    attacked = {f[axis]: f["value"] for f in fq if f[axis] != unattacked}
    marks = list(attacked)
    if quarters and marks:
        final = max(marks)
        marks = sorted({min(attacked, key=lambda s: abs(s - q * final)) for q in (0.25, 0.5, 1.0)})
    found = {"points": points, "fa": fa, "fq": fq, "marks": marks, "unattacked": unattacked}
    over = [attacked[s] for s in marks]
    return found | {
        "ra": sum(over) / len(over) if over else None,
        "worst": min(attacked.values()) if attacked else None,
    }
