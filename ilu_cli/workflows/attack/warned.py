"""What an attack that is done gives cause for: its data, its steps, what it learned, and what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ilu_cli import care, registry
from ilu_cli.care.measured import at_chance, fa_at_chance
from ilu_cli.care.steps import unchanged, unmoved, zeros
from ilu_cli.runs.results import AttackResult, Row, read_rows
from ilu_cli.workflows.attack.attempt import Attempted
from ilu_cli.workflows.content import of_benchmarks

if TYPE_CHECKING:
    from ilu_cli.runs.store import Run
    from ilu_cli.workflows.attack.run import AttackPlan


def warned(plan: AttackPlan, new: Run, attempt: Attempted, result: AttackResult, *, same: bool) -> Row:
    """For the manifest: the warnings, and the counts of rows that are where they should not be.

    `same`: the weights are what they were.
    """
    declared, label = registry.attack[plan.recipe.attack.name].declared, new.id
    content = replace(plan.content, overlaps=[*plan.content.overlaps])
    if content.datasets:
        known = attempt.evaluation
        asked = {name: (bench, known.items[name]) for name, bench in known.benchmarks.items()}
        of_benchmarks(content, asked, content.datasets, declared.forget)
    found: list[care.Warned | None] = list(content.warned)
    if attempt.trained:
        steps = read_rows(new.path / "metrics.jsonl")
        found += [*zeros(label, steps), unmoved(label, steps), unchanged(label, 0.0 if same else None)]
    if result.fa:
        found.append(fa_at_chance(label, result.fa))
    if attempt.subject.run is None and result.points[0].strength == result.unattacked:
        found += [at_chance(attempt.subject.label, s) for s in result.points[0].eval.values()]
    for point in result.points:
        found += [w for s in point.eval.values() for w in care.read(s.more.get("warnings") or [])]
    told = {"content": content.facts()} if content.datasets else {}
    return told | {"warnings": [w.to_json() for w in care.once(found)]}
