"""The warnings of models that were evaluated, and of those that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ilu_cli import care
from ilu_cli.care.measured import along
from ilu_cli.engine.accel import backend
from ilu_cli.models.subject import Subject
from ilu_cli.report.numbers import Estimate
from ilu_cli.report.warnings import utility_unmatched
from ilu_cli.runs.files import write_json
from ilu_cli.runs.results import WARNINGS, Summary
from ilu_cli.workflows.attack.seen import unlearning_recipes
from ilu_cli.workflows.content import Content, of_benchmarks, trained_on
from ilu_cli.workflows.evaluate import Evaluation

if TYPE_CHECKING:
    from ilu_cli.workflows.compare import Comparison


def of_lineage(
    evaluation: Evaluation, lineage: Sequence[tuple[str, Subject, Mapping[str, Summary]]]
) -> list[care.Warned]:
    """What evaluating a lineage, the original first, gives cause for; kept beside the results of its last model.

    With them are the counts of questions that stand in what the lineage was trained on.
    """
    subject, content = lineage[-1][1], Content()
    recipes = unlearning_recipes(subject) if subject.run else []
    asked = {name: (bench, evaluation.items[name]) for name, bench in evaluation.benchmarks.items()}
    of_benchmarks(content, asked, trained_on(content, recipes))
    rows = (w for _, _, found in lineage for s in found.values() for w in care.read(s.more.get("warnings") or []))
    found = care.once(
        [*along([(s.label, s.run is None, results) for _, s, results in lineage]), *rows, *content.warned]
    )
    if subject.run and backend().main:
        where = subject.run.results(subject.step) / WARNINGS
        where.parent.mkdir(parents=True, exist_ok=True)
        write_json(where, {"warnings": [w.to_json() for w in found], "content": content.facts()})
        subject.run.add(where.relative_to(subject.run.path).as_posix())
    return found


def unmatched(comparisons: Iterable[Comparison], margin: float) -> Iterator[care.Warned]:
    """Utility that is different by its interval, and not within the margin."""
    for c in comparisons:
        for r in c["numbers"]:
            low, high = r["low"], r["high"]
            if r["role"] != "utility" or not r["sign"] or low is None or high is None or r["difference"] is None:
                continue
            if (low > 0 or high < 0) and (low < -margin or high > margin):
                between = Estimate(r["difference"], low, high)
                if found := utility_unmatched(c["a"], c["b"], r["name"], between):
                    yield found
