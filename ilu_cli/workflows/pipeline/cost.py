"""What an attack costs the attacker: the utility that it loses on the way."""

from __future__ import annotations

from typing import TypedDict

from ilu_cli.metrics.figure import lost
from ilu_cli.runs.results import Kind, Point


class Way(TypedDict, total=False):
    """`up`: more of it is better. Without it, as in what earlier versions wrote, the kind tells."""

    up: bool


class KeptAt(Way):
    """A benchmark of utility at the points of an attack where it was measured: strength and value, in their order."""

    kind: Kind
    at: list[tuple[float, float]]


def kept_at(points: tuple[Point, ...]) -> dict[str, KeptAt]:
    """What utility is at the points of an attack, by benchmark."""
    found: dict[str, KeptAt] = {}
    for point in points:
        for name, summary in point.eval.items():
            if summary.role != "forget":
                known = found.setdefault(name, KeptAt(kind=summary.kind, up=summary.up, at=[]))
                known["at"].append((point.strength, summary.value))
    return found


def losses(kept: KeptAt, unattacked: float | None, strengths: list[float]) -> list[float | None]:
    """What utility has lost at each strength since before the attack: see `ilu_cli.recipe.search.BoundSpec`.

    A point where it was not measured has lost what the last one has.
    """
    known = dict(kept["at"])
    before = known.get(unattacked) if unattacked is not None else None
    if before is None or not known:
        return [None] * len(strengths)
    last = kept["at"][-1][1]
    after = [known.get(s, last) for s in strengths]
    return [lost(kept["kind"], before, v, up=kept.get("up", kept["kind"] != "loss")) for v in after]
