"""A measured number as results keep it. JSON has no infinity: an infinite number is null there and `infinite` says so.

The perplexity of a model that unlearning has wrecked is e to the power of a loss of hundreds of nats and more, beyond
any floating-point number. It is a result, and the worst there is; its standard error is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict


class Figure(TypedDict, total=False):
    """A number in JSON. An error that is not known is null, and so is an infinite value, which `infinite` tells."""

    value: float | None
    stderr: float | None
    infinite: bool


def number(value: float, error: float) -> Figure:
    """As a summary holds it: an error that is not known is None, an infinite value null."""
    if math.isinf(value):
        return {"value": None, "stderr": None, "infinite": True}
    return {"value": value, "stderr": error if math.isfinite(error) else None}


def value_of(summary: Mapping[str, Any]) -> float:
    """The value that a summary holds, infinity included."""
    return math.inf if summary.get("infinite") else summary["value"]


def lost(kind: str, before: float, now: float, *, up: bool) -> float:
    """What a number of utility has lost: a share by points, another number as a share of what it was.

    `up`: more of it is better, as of a coherence; of a perplexity less is.
    """
    if now == before:  # infinite ones, too
        return 0.0
    fell = before - now if up else now - before
    if kind == "share":
        return fell
    if not before:
        return math.copysign(math.inf, fell)
    return -1.0 if math.isinf(before) else fell / abs(before)


def shown(value: float, form: str = ".3f") -> str:
    """A value for people: ∞, and no hundred digits."""
    return "∞" if math.isinf(value) else format(value, form if abs(value) < 1e6 else ".3g")


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit, unit_size in (("GB", 1e9), ("MB", 1e6)):
        if count >= unit_size:
            return f"{count / unit_size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def strict(value: Any) -> Any:
    """The same with null for infinite numbers, as JSON needs it. A NaN stays: it is a mistake, and writing it fails."""
    if isinstance(value, Mapping):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and math.isinf(value) else value
