"""What an attacker searches over, and what it may cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from ilu_cli.recipe.spec import Spec

Chosen = dict[str, object]
"""What an attacker chooses: keys of an attack, dotted where they lie deeper, and their values."""


class RangeSpec(Spec):
    """Numbers from `low` to `high`; whole ones if both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="even on a logarithmic scale")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


RangeOrList = Annotated[
    Annotated[RangeSpec, Tag("#range")] | Annotated[list[Any], Tag("#list")],
    Discriminator(lambda given: "#list" if isinstance(given, list) else "#range"),
]


class SearchSpec(Spec):
    """Trials of an attack, each with keys that a sampler chooses after what the ones before it brought."""

    trials: PositiveInt = Field(le=10_000)
    over: dict[str, RangeOrList] = Field(min_length=1, description="keys of the attack: a range, or a list")
    sampler: Literal["tpe", "random"] = Field("tpe", description="Optuna's; `random` for comparison")
    seed: NonNegativeInt = Field(0, le=2**31, description="of the sampler; the attack's own seed is added")

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is impossible in it, by key."""
        for key, given in self.over.items():
            if key == "name":
                yield key, "one attack is searched; another stands beside it under `attacks`"
            elif isinstance(given, list):
                if len(given) < 2:
                    yield key, "a search needs two choices at least"
                twice = [v for i, v in enumerate(given) if v in given[:i]]
                if twice:
                    yield key, f"{twice[0]} stands twice"
            elif given.low >= given.high:
                yield key, f"low is {given.low}, and high {given.high} is not above it"
            elif given.log and given.low <= 0:
                yield key, f"a logarithmic range begins above 0, not at {given.low}"

    def corners(self) -> Iterator[Chosen]:
        """Values that reach every end of every key, to be checked before any is tried."""
        ends = {k: g if isinstance(g, list) else [g.low, g.high] for k, g in self.over.items()}
        for i in range(max(map(len, ends.values()))):
            yield {k: values[min(i, len(values) - 1)] for k, values in ends.items()}


class BoundSpec(Spec):
    """What an attack may cost the attacker to count: how much worse a benchmark of utility gets than before it.

    Of a share by points, as 0.05 from .91 to .86; of another number as a share of it, as a perplexity 5 % higher or a
    coherence 5 % lower.
    """

    benchmark: str
    loss: float = Field(0.05, ge=0)
