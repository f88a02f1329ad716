"""What one finished attack of a graph comes to: its figures, their errors and their values by question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

import numpy as np

from ilu_cli.metrics.crossed import single, summarised
from ilu_cli.metrics.figure import strict
from ilu_cli.report.answers import ByStrength
from ilu_cli.runs.results import AttackResult, Forgotten
from ilu_cli.workflows.pipeline.graph import Node
from ilu_cli.workflows.pipeline.shapes import Spread
from ilu_cli.workflows.pipeline.worst import result_of


class Figures(TypedDict):
    """Of one attack: FQ before it, at its end and at its lowest, RA and FA; their errors and values by question."""

    before: float | None
    fq: float | None
    worst: float | None
    ra: float | None
    fa: float | None
    stderr: dict[str, float | None]
    rows: dict[str, np.ndarray | None]


Measure = Literal["before", "fq", "ra", "fa", "worst"]
WithRows = tuple[float | None, float | None, np.ndarray | None]  # a value, its standard error, its rows
NOTHING: WithRows = (None, None, None)


def figures(node: Node, known: ByStrength | None = None) -> Figures:
    """FQ before, after, its mean (RA) and lowest value over the attack's points, and FA, of one finished attack.

    `stderr` are their standard errors over the questions; that of RA is the mean over the points, an upper bound as the
    points share the questions. `rows` are their values by question, from `known`.
    """
    result, known = result_of(node), known or {}
    after, fa = result.after, result.fa
    before = _of_point(next((f for f in result.fq if f.strength == result.unattacked), None), known)
    last = _of_point(after[-1] if after else None, known)
    worst = _of_point(min(after, key=lambda f: f.value, default=None), known)
    ra = result.ra, mean([f.stderr for f in after]), _of_marks(result, known)
    learned = (fa.value, fa.stderr, None) if fa else NOTHING
    found = {"before": before, "fq": last, "worst": worst, "ra": ra, "fa": learned}
    return {
        "before": before[0], "fq": last[0], "worst": worst[0], "ra": ra[0], "fa": learned[0],
        "stderr": {name: error for name, (_, error, _) in found.items()},
        "rows": {name: by_question for name, (*_, by_question) in found.items()},
    }  # fmt: skip


def _of_point(f: Forgotten | None, known: ByStrength) -> WithRows:
    return NOTHING if f is None else (f.value, f.stderr, known.get(f.strength))


def _of_marks(result: AttackResult, known: ByStrength) -> np.ndarray | None:
    """RA by question; None unless every point that it is the mean over has rows, of as many questions."""
    marks = result.marks or [f.strength for f in result.after]
    rows = [known[m] for m in marks if m in known]
    return np.mean(rows, axis=0) if len(rows) == len(marks) and len({len(r) for r in rows}) == 1 else None


def mean(values: Iterable[float | None]) -> float | None:
    """Of what is known; None if nothing is."""
    known = known_of(values)
    return sum(known) / len(known) if known else None


def known_of(values: Iterable[float | None]) -> list[float]:
    """The values that are not None."""
    return [v for v in values if v is not None]


def interval(
    values: Sequence[float], errors: Sequence[float | None] = (), rows: Sequence[np.ndarray | None] = (),
    *, share: bool = True,
) -> Spread | None:  # fmt: skip
    """Mean of one value per seed with its 95 % interval over seeds and questions; `how` says of what it is made.

    With the `rows` of every seed, [Q] each, from the mean squares of both (`ilu_cli.metrics.crossed`). Without, from
    the spread of the seeds and their `errors` over the questions, which counts twice what seed and question do together
    and is a little wide. `error` is that over the questions of one seed. A share's interval is kept within [0, 1]. None
    without values.
    """
    if not values:
        return None
    if infinite := sum(map(math.isinf, values)):
        how = f"none: infinite for {infinite} of {len(values)} seeds"
        return {"mean": None, "low": None, "high": None, "values": strict(list(values)), "error": None, "how": how}
    n, known = len(values), known_of(errors)
    error = math.sqrt(sum(e**2 for e in known) / len(known)) if known else None
    given, over = [r for r in rows if r is not None], [f"{n} seeds"] * (n > 1)
    if len(given) == n and len({len(r) for r in given}) == 1 and len(given[0]) > 1:
        found = single(np.stack(given), share=share)
        how = f"t over {' and '.join([*over, f'{len(given[0])} questions'])}"
    else:
        found = summarised(values, error, share=share)
        how = f"t over {' and '.join(over + ['the questions'] * (error is not None))}"
        how = how if n > 1 else "normal over the questions" if error is not None else "none: one seed"
    return {
        "mean": sum(values) / n,
        "low": found.low,
        "high": found.high,
        "values": list(values),
        "error": error,
        "how": how,
    }
