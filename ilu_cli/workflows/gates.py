"""What an evaluation had to show, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ilu_cli.errors import UsageError
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.evaluation import GateSpec
from ilu_cli.recipe.requirement import Name, Verdict
from ilu_cli.runs.results import Summary


def check_possible(spec: GateSpec, subject: Subject, alone: bool) -> None:
    """Refuse requirements that compare with a model that will not be evaluated.

    Raises:
        UsageError: if there is no parent, or only the model itself is to be evaluated.
    """
    for requirement in spec.requirements:
        for name in requirement.names:
            if name.stage and (alone or subject.run is None):
                why = "--alone leaves it out" if subject.run else f"{subject.label} is no run and has none"
                raise UsageError(f"requirement {requirement.text!r} compares with the {name.stage}: {why}")


def verdicts(spec: GateSpec, lineage: Sequence[Mapping[str, Summary]]) -> list[Verdict]:
    """Check every requirement.

    Args:
        spec: the requirements.
        lineage: summaries by benchmark, the original first and the model itself last.
    """

    def lookup(name: Name) -> float | None:
        results = lineage[{"": -1, "parent": -2, "original": 0}[name.stage]]
        summary = results[name.bench]
        if name.part == "chance":
            return summary.chance
        found = summary if name.metric == summary.metric else summary.also.get(name.metric)
        return None if found is None else found.value if name.part == "value" else found.stderr

    return [requirement.check(lookup) for requirement in spec.requirements]
