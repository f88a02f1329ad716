"""One benchmark on the runs that differ in their seed only, with its rows, intervals and paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ilu_cli.metrics.crossed import Rows, compare, paired, single
from ilu_cli.report.numbers import Estimate, of_interval, of_runs
from ilu_cli.runs.results import Summary, own_rows, read_rows, rows_file


@dataclass
class Source:
    """A result, and where its rows are. `seeds`: of the unlearning and, under an attack, of the attack."""

    summary: Summary
    folder: Path
    seeds: tuple[int, ...]

    @cached_property
    def rows(self) -> Rows | None:
        """The rows of the headline; None if they are gone, or if it is not their mean."""
        found = own_rows(read_rows(rows_file(self.folder, self.summary.benchmark)))
        if not found:
            return None
        values, weights = (np.array([r.get(key, 1) for r in found], float) for key in ("value", "weight"))
        asked = self.summary.data["fingerprint"]
        rows = Rows(f"{asked}:{len(found)}", values, weights, self.summary.kind == "share")
        return rows if math.isclose(rows.estimate, self.summary.value, rel_tol=1e-6, abs_tol=1e-9) else None


@dataclass
class Reading:
    """One benchmark at one strength of an attack (or before any), of all runs that differ in the seed only."""

    x: float
    sources: list[Source]

    @property
    def first(self) -> Summary:
        """The result of the first run: what is measured, and how, is the same in all."""
        return self.sources[0].summary

    @property
    def share(self) -> bool:
        """Whether it is a share of right answers, which is written in percent."""
        return self.first.kind == "share"

    @cached_property
    def estimate(self) -> Estimate:
        """Over seeds and questions, or for one run over its questions."""
        rows = [s.rows for s in self.sources if s.rows is not None]
        if len(rows) < 2 or len(rows) < len(self.sources) or len({r.items for r in rows}) > 1:
            return of_runs([s.summary for s in self.sources])
        return of_interval(single(np.stack([r.influence for r in rows]), share=rows[0].share), "seeds")

    def minus(self, other: Reading) -> Estimate | None:
        """Self − other, question by question: over common seeds in pairs, without any of all runs of both.

        None if the rows of a run are gone, are not values of the metric, or answer other questions.
        """
        mine, theirs = ({s.seeds: s for s in reading.sources} for reading in (self, other))
        common = [seeds for seeds in theirs if seeds in mine]
        left = _rows([mine[seeds] for seeds in common] or self.sources)
        right = _rows([theirs[seeds] for seeds in common] or other.sources)
        if left is None or right is None or len({r.items for r in (*left, *right)}) > 1:
            return None
        found = paired(right, left) if common else compare(right, left)
        return of_interval(found, "seeds" if len(left) + len(right) > 2 else "examples")


def _rows(sources: list[Source]) -> list[Rows] | None:
    """The rows of all of them, or None."""
    found = [rows for s in sources if (rows := s.rows) is not None]
    return found if len(found) == len(sources) else None
