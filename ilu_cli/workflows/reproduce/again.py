"""Plan a recorded run again, with the same recipe on the same parents, and run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli.engine.accel import backend
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UsageError
from ilu_cli.models.subject import Subject, find_subject, of_run
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import RECIPES, ApplyRecipe, AttackRecipe, UnlearnRecipe, evaluation
from ilu_cli.runs.results import Data, Row, Summary, read_results
from ilu_cli.runs.store import Run, Store, versions
from ilu_cli.workflows import evaluate, unlearn
from ilu_cli.workflows.attack import run as attack
from ilu_cli.workflows.plan import RunPlan
from ilu_cli.workflows.reproduce.compare import fingerprints
from ilu_cli.workflows.reproduce.recorded import Recorded, parent_of_record
from ilu_cli.workflows.reproduce.stages import Stage, equal_or_not, stage_of, verdict
from ilu_cli.workflows.taskvec import apply


@dataclass(frozen=True)
class Again:
    """A plan of the same run: what is the same already, and how it is run. `parent` is what the run changes."""

    was: Recorded
    recipe: Any
    plan: RunPlan
    parent: Subject
    stages: list[Stage]

    def run(self, store: Store, reporter: Reporter, out: Path | None) -> Run:
        """Make the run."""
        if isinstance(self.plan, attack.AttackPlan):
            return attack.run(self.plan, store, reporter, self.parent, out)
        if isinstance(self.plan, apply.ApplyPlan):
            return apply.run(self.plan, store, reporter, out)
        assert isinstance(self.plan, unlearn.UnlearnPlan)
        return unlearn.run(self.plan, store, reporter, out)


def plan(was: Recorded, given: list[str], store: Store) -> Again:
    """Find the parents by their hashes, plan the run, and compare what it will be made from.

    Raises:
        UnavailableError: if a parent or data is not to be had.
        UsageError: if the recipe is none of a run, or needs what is not loaded.
    """
    command = was.manifest.command
    if command not in RECIPES:
        raise UsageError(f"{was.manifest.id} is a run of `ilu {command}`, which is not known here")
    recipe = load(RECIPES[command], was.recipe, {}, [])
    named = [find_subject(text, store) for text in given]
    parents = [parent_of_record(p, was, named, store) for p in was.manifest.parents]
    if isinstance(recipe, UnlearnRecipe):
        planned: RunPlan = unlearn.plan(recipe, store, parents[0], recorded=True)
    elif isinstance(recipe, AttackRecipe):
        planned = attack.plan(recipe, parents[0], was.manifest.clear_of, recorded=True)
    elif isinstance(recipe, ApplyRecipe):
        names = [spec.run for spec in recipe.vectors]
        known = {recipe.onto: parents[0]} | dict(zip(names, parents[1::2]))
        planned = apply.plan(recipe, store, known.__getitem__)
    else:
        raise UsageError(f"`ilu {command}` makes no run")
    return Again(was, recipe, planned, parents[0], _before(was, planned.data))


def _before(was: Recorded, data: list[Data]) -> list[Stage]:
    """What is known before the run: its data, as far as the plan has read it, and the packages."""
    theirs = {d["role"] for d in data}
    then = [d for d in was.manifest.data if d["role"] in theirs]
    pairs = {
        "data": equal_or_not(fingerprints(then), fingerprints(data)),
        "packages": equal_or_not(was.manifest.versions, versions()),
    }
    return [stage_of(name, found, {}) for name, found in pairs.items()]


def keep(was: Recorded, new: Run, found: list[Stage]) -> None:
    """Write into the new run's manifest what it is again, and how alike they are."""
    new.manifest.result["reproduces"] = {"run": was.manifest.id, "found": verdict(found)}
    new.save()


def measure_again(was: Recorded, new: Run, reporter: Reporter) -> list[str]:
    """Measure on the new run what was measured on the old one beside its own points; return what could not be."""
    missed: list[str] = []
    for folder in (was.eval, *sorted(was.eval.glob("step-*"))):
        step = None if folder == was.eval else int(folder.name.rpartition("-")[2])
        if not (found := read_results(folder)):
            continue
        subject = of_run(new, step)
        for measured, _ in _evaluations(found, reporter, missed):
            measured.subject(subject)
    if was.run and was.run.eval.is_dir() and backend().main:
        new.write_card()
    return missed


def measured_again(subject: Subject, reporter: Reporter, folder: Path) -> tuple[Path, list[str]]:
    """Score the results of a model anew, into a folder; what is known of it is not looked at.

    Raises:
        UsageError: if nothing was measured on it, or of nothing is known how.
    """
    results, missed = evaluate.results_folder(subject), list[str]()
    if not (found := read_results(results)):
        raise UsageError(f"nothing was measured on {subject.label} yet", hint=f"ilu eval {subject.label}")
    for measured, names in _evaluations(found, reporter, missed):
        scorer = evaluate.load_scorer(subject, measured.spec.precision, chat=measured.chat, note=reporter.note)
        for name in names:
            measured.score(name, subject.digest, scorer, folder)
    if len(missed) == len(found):
        raise UsageError(f"nothing can be measured again: {'; '.join(missed)}", hint=f"ilu eval {subject.label}")
    return results, missed


def _evaluations(
    found: dict[str, Summary], reporter: Reporter, missed: list[str]
) -> list[tuple[evaluate.Evaluation, list[str]]]:
    """The benchmarks of results, together where they were asked in the same way."""
    ways: dict[str, tuple[Row, list[str], list[Row | str]]] = {}
    for name, summary in found.items():
        if "asked" not in summary.more:
            missed.append(f"{name}: how it was asked is not recorded (measured by an earlier version)")
            continue
        asked = dict(summary.more["asked"])
        keys = asked.pop("keys", {})
        way = ways.setdefault(repr(sorted(asked.items())), (asked, [], []))
        way[1].append(name)
        way[2].append({"name": name, **keys} if keys else name)
    spec = evaluation(EvalSpec)
    return [
        (evaluate.Evaluation(spec.model_validate({"benchmarks": items, **asked}), reporter), names)
        for asked, names, items in ways.values()
    ]
