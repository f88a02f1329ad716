from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat

from ilu_cli.recipe.specs import Fraction, Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt
    from ilu_cli.recipe.source import Key

WAYS = ("average", "ties")


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """Keys of TIES where only averages are asked for."""
    for name in ("density", "scale"):
        if "ties" not in own.ways and getattr(own, name) != type(own).model_fields[name].default:
            yield (*key, name), "belongs to `ways: [ties]`; an average keeps all, halved"


@attack(strength="way", access="weights", unattacked=0, original=True, problems=problems)
def merge(
    attempt: Attempt,
    *,
    finetuned: str | None = None,
    ways: Some[Literal["average", "ties"]] = ["average", "ties"],
    density: Fraction = 0.2,
    scale: PositiveFloat = 1.0,
) -> Iterator[int]:
    """Merge the unlearned model with another fine-tune of the original, as people do who want the skills of both.

    `average`: (θ_u + θ_ft) / 2 (arXiv 2203.05482). `ties` (arXiv 2306.01708): θ_o + `scale` · the disjoint mean of the
    two task vectors, of which each keeps its `density` largest entries, trimmed weight by weight and not over the whole
    model. `finetuned` is a run, a model or a folder of the same shapes; null: the newest run that fine-tuned the
    original and kept its weights, as the reference line of a training attack does. Strengths are the numbers of the
    ways, 1 for the average and 2 for TIES.
    """
    theirs, original = attempt.weights(finetuned), attempt.weights()
    for way in ways:
        change = _average if way == "average" else functools.partial(_ties, original=original, density=density, a=scale)
        attempt.mix(functools.partial(change, theirs=theirs))
        attempt.name(way)
        yield WAYS.index(way) + 1


def _average(weight: Tensor, name: str, theirs: Mapping[str, Tensor]) -> Tensor:
    return (weight + theirs[name]) / 2


def _ties(
    weight: Tensor, name: str, theirs: Mapping[str, Tensor], original: Mapping[str, Tensor], density: float, a: float
) -> Tensor:
    """θ_o + TIES of (θ_u − θ_o, θ_ft − θ_o), in float64."""
    from ilu_cli.taskvec.arithmetic import combine

    start = original[name].double()
    deltas = [w.double() - start for w in (weight, theirs[name])]
    return combine(start, deltas, [a, a], "ties", density, 0, name).to(weight)
