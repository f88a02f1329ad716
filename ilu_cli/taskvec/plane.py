"""Checkpoints on the plane of two task vectors, from inner products alone."""

from __future__ import annotations

import math
from typing import TypedDict

from ilu_cli.errors import UnavailableError
from ilu_cli.taskvec.angles import Gram

PARALLEL = 1e-6  # sine of the angle below which two vectors span no plane


class Drawn(TypedDict):
    """A model that is drawn, and after how many steps; `forget` is its accuracy on the forget benchmarks."""

    role: str
    label: str
    step: int | None
    forget: float | None


class Placed(Drawn):
    """A model in the plane; `explained` is the share of its squared length that lies in it."""

    x: float
    y: float
    explained: float | None


class Plane(TypedDict):
    """What the two axes are, and the models."""

    axes: list[str]
    points: list[Placed]


def coordinates(gram: Gram, first: str, second: str, points: list[str]) -> list[tuple[float, float, float | None]]:
    """(x, y, explained) of each point: a vector from the origin θo, whose inner products with all others `gram` holds.

    Gram–Schmidt: e₁ = a/‖a‖, e₂ = (b − ⟨b, e₁⟩e₁)/‖b − ⟨b, e₁⟩e₁‖ for a = `first`, b = `second`. `explained` is
    the share of the point's squared norm inside the plane, (x² + y²)/‖v‖²; None for the origin itself.

    Raises:
        UnavailableError: if the two vectors span no plane.
    """
    length = gram.norm(first)
    along = gram.inner(first, second) / length if length else 0.0
    height = math.sqrt(max(0.0, gram.inner(second, second) - along**2))
    if not length or height <= PARALLEL * gram.norm(second):
        raise UnavailableError(f"τ_{first} and τ_{second} are zero or parallel: they span no plane")
    found: list[tuple[float, float, float | None]] = []
    for point in points:
        x = gram.inner(first, point) / length
        y = (gram.inner(second, point) - along * x) / height
        norm = gram.inner(point, point)
        found.append((x, y, (x * x + y * y) / norm if norm else None))
    return found
