"""The rows of an attack's points: what was forgotten question by question."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from ilu_cli.runs.results import AttackResult, own_rows, point_name, read_results, read_rows, rows_file

ByStrength = dict[float, np.ndarray]  # by strength [Q], whose mean is FQ


def answers(folder: Path, result: AttackResult) -> ByStrength | None:
    """FQ of each question at every point of a finished attack, the unattacked one too.

    Points may be of different questions, as those of `alias` are. None if the rows are gone or are others than were
    counted.

    Args:
        folder: the run's eval folder.
        result: the run's result, of which `fq` and `axis` are read.
    """
    found = {}
    for point in result.fq:
        values = _forgotten(folder / point_name(result.axis, point.strength))
        if values is None or not math.isclose(values.mean(), point.value, abs_tol=1e-6):
            return None
        found[point.strength] = values
    return found or None


@functools.lru_cache(maxsize=4096)
def _forgotten(folder: Path) -> np.ndarray | None:
    """1 − right of each question; of several forget benchmarks such that the mean is the mean of the benchmarks'."""
    parts = []
    for name, summary in read_results(folder).items():
        if summary.counts and (rows := own_rows(read_rows(rows_file(folder, name)))):
            parts.append(1 - np.array([r["value"] for r in rows], float))
    if len(parts) < 2:
        return parts[0] if parts else None
    total, mean = sum(map(len, parts)), float(np.mean([p.mean() for p in parts]))
    return np.concatenate([mean + total / len(parts) / len(p) * (p - p.mean()) for p in parts])


def attacked(known: ByStrength, result: AttackResult) -> list[np.ndarray]:
    """The points after the attack began."""
    return [values for strength, values in known.items() if strength != result.unattacked]
