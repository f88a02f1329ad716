"""What two runs are compared in, from cause to effect, and what the comparison says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sameness = Literal["identical", "within tolerance", "different"]

ORDER = ("recipe", "setting", "data", "parent", "code", "packages", "losses", "weights", "files", "metrics", "rows")
"""Each can only come from those before it: the first difference is nearest to the cause."""

CAUSES = ("recipe", "setting", "data", "parent", "code")  # with another of these it is another run
TOLERANCES = {"losses": 0.05, "weights": 0.05, "metrics": 0.05}
"""By how much numbers may differ, relatively; of weights it is a share of what the run changed.

Kernels, threads and processors add in another order, which turns the last bits; AdamW divides by the root of the second
moment, so where a gradient is nearly zero a turned bit moves a weight by up to the learning rate. A twentieth of the
change of a tensor, or of a loss, is far above that, and below the standard error of a benchmark of some hundred rows.
"""


@dataclass(frozen=True)
class Pair:
    """A thing in both runs. `by` is their relative difference: 0 if they are equal, ∞ if they cannot be weighed."""

    where: str
    was: Any
    now: Any
    by: float

    def to_json(self) -> dict[str, object]:
        return {
            "where": self.where,
            "was": self.was,
            "now": self.now,
            "by": self.by if math.isfinite(self.by) else None,
        }


@dataclass(frozen=True)
class Stage:
    """How many pairs of a kind were compared and differ, by how much at most, and the first of them."""

    name: str
    compared: int
    different: int
    largest: float
    first: Pair | None
    beyond: Pair | None

    def to_json(self) -> dict[str, object]:
        pairs = {"first": self.first, "beyond": self.beyond}
        return {
            "stage": self.name,
            "compared": self.compared,
            "different": self.different,
            "largest": self.largest if math.isfinite(self.largest) else None,
            **{k: p.to_json() if p else None for k, p in pairs.items()},
        }


def stage_of(name: str, pairs: Iterable[Pair], tolerances: Mapping[str, float]) -> Stage:
    """Go through the pairs of a stage, in their order."""
    compared, different, largest = 0, 0, 0.0
    first, beyond = None, None
    for pair in pairs:
        compared += 1
        if pair.by == 0:
            continue
        different, largest, first = different + 1, max(largest, pair.by), first or pair
        if name in CAUSES or pair.by > tolerances.get(name, math.inf) or (name in tolerances and pair.by == math.inf):
            beyond = beyond or pair
    return Stage(name, compared, different, largest, first, beyond)


def verdict(stages: Iterable[Stage]) -> Sameness:
    """Identical: bytes of weights, losses, numbers and rows are equal, whatever was installed."""
    found = list(stages)
    if any(s.beyond for s in found):
        return "different"
    return "within tolerance" if any(s.different for s in found if s.name != "packages") else "identical"


def first_difference(stages: Iterable[Stage], *, beyond: bool = False) -> tuple[str, Pair] | None:
    """The first thing that differs, in the order of causes; or that differs by more than is tolerated."""
    for stage in sorted(stages, key=lambda s: ORDER.index(s.name)):
        if pair := stage.beyond if beyond else stage.first:
            return stage.name, pair
    return None


def relative(was: Any, now: Any) -> float:
    """|was − now| over the larger of the two; 0 for equal things, ∞ for what are no finite numbers."""
    if was == now or (was != was and now != now):
        return 0.0
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in (was, now)):
        return math.inf
    return float(abs(was - now) / max(abs(was), abs(now)))


def equal_or_not(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Pair]:
    """Things that are the same or not, by key."""
    for key in {**was, **now}:
        a, b = was.get(key), now.get(key)
        yield Pair(key, a, b, 0.0 if a == b and (key in was) == (key in now) else math.inf)


def numbers(was: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[Pair]:
    """Numbers by key; one that only one side has cannot be weighed."""
    for key in {**was, **now}:
        yield Pair(f"{where}{key}", was.get(key), now.get(key), relative(was.get(key), now.get(key)))
