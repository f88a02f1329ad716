"""What the training of an attack is fed: its own data, and what is mixed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.engine.gradients import Term, mean_nll
from ilu_cli.engine.stream import LaterStream
from ilu_cli.recipe.specs import Form, TrainSpec
from ilu_cli.recipe.training_attack import MixSpec, TrainingAttack
from ilu_cli.workflows.machine import stepped_here
from ilu_cli.workflows.plan import StreamPlan, stream_of

MIXED = "attack mix"


class Feeding(Protocol):
    """What feeding needs of an attempt."""

    seed: int
    tokenizer: Any

    def admit(self, data: Dataset, *, test: bool = False) -> Dataset:
        """See `ilu_cli.attacks.Attempt`."""


def fed(
    role: str,
    data: Sequence[Dataset],
    spec: TrainSpec,
    batch: int,
    form: Form,
    keys: TrainingAttack | None,
    by: Feeding,
) -> tuple[list[StreamPlan], TrainSpec]:
    """The streams of a training and how weights are stepped, with the recipe's `keys` of training attacks put in."""
    own = stream_of(role, list(data), batch, form, by.seed, by.tokenizer)
    mix = keys.mix if keys else None
    if mix is None:
        return [own], stepped_here(keys.stepped(spec) if keys else spec)
    datasets = [by.admit(load_dataset(ref, "train")) for ref in mix.data]
    mixed = stream_of(MIXED, datasets, mix.batch, mix, by.seed, by.tokenizer)
    if mix.first:
        own.stream = LaterStream(role, own.corpora, batch, by.seed, after=mix.first)
    return [own, mixed], stepped_here(keys.stepped(spec) if keys else spec)


def terms(streams: Sequence[StreamPlan], mix: MixSpec | None) -> list[Term]:
    """The loss of each stream: mean NLL of its tokens. That of the attacker's own data comes first, with weight 1."""
    names, weights = ("loss", "mix"), (1.0, mix.weight if mix else 1.0)
    return [mean_nll(n, s.stream, w) for n, s, w in zip(names, streams, weights)]
