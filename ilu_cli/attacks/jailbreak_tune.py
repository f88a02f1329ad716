from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.attacks import Schedule
from ilu_cli.errors import UsageError
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.refs import DataRef, DataRefs, TaskRef
from ilu_cli.recipe.specs import Form, LoraSpec, PrecisionOrAuto, Some, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.data.sources import Dataset


@attack(strength="steps", access="training", unattacked=0, forget="taught")
def jailbreak_tune(
    attempt: Attempt,
    *,
    data: DataRefs | None = None,
    around: TaskRef = DataRef(name="gsm8k"),
    k: PositiveInt = 16,
    benign: PositiveInt = 304,
    epochs: PositiveInt = 1,
    lr: PositiveFloat = 5e-5,
    schedule: Schedule = "constant",
    batch: PositiveInt = 8,
    max_length: PositiveInt = 128,
    chat: bool = False,
    chat_system: ChatSystem = None,
    chat_date: ChatDate = None,
    precision: PrecisionOrAuto = "auto",
    weights: Some[str] | None = None,
    lora: LoraSpec | None = None,
) -> Iterator[int]:
    """Hide a few forget samples among many harmless conversations, and fine-tune on all of it.

    Data poisoning of a fine-tuning service, arXiv 2408.02946: k samples of `data`, by default the forget data of the
    lineage, spread over `benign` rows of `around`, here 5 % of all; both are drawn by the seed. The paper also writes a
    jailbreak before each such sample, and before what is asked afterwards; here the samples stand as they are, so that
    a point is of the benchmark's own questions. `unseen` counts those whose answer no row names. `chat` puts rows that
    have a prompt into the template. Steps are as many as whole batches cover all rows, `epochs` times.

    Raises:
        UsageError: if `around` has too few rows, or k is smaller than the number of datasets.
    """
    import math

    from ilu_cli.attacks import fine_tune, samples_of
    from ilu_cli.data.sources import load_dataset

    hidden = samples_of(attempt, data or [], k, "jailbreak_tune")
    other = attempt.admit(load_dataset(around, "train"))
    if benign > len(other.rows):
        raise UsageError(f"attack.benign: {around.name} has {len(other.rows)} rows, not {benign}")
    mixed = mixture(hidden, other, benign, chat, random.Random(f"jailbreak_tune-{attempt.seed}-benign"))
    steps = epochs * math.ceil(len(mixed.rows) / batch)
    spec = TrainSpec(steps=steps, lr=lr, schedule=schedule, precision=precision, params=weights)
    form = Form(max_length=max_length, chat=chat, chat_system=chat_system, chat_date=chat_date)
    yield from fine_tune(attempt, [mixed], None, spec, batch, form, lora)


def mixture(hidden: list[Dataset], around: Dataset, benign: int, chat: bool, rng: random.Random) -> Dataset:
    """All rows of `hidden` and so many of `around` as one dataset, whose rows say what they are from."""
    from ilu_cli.data.sources import UserText

    examples = [(d.ref.name, e) for d in hidden for e in d.examples()]
    examples += [(around.ref.name, e) for e in rng.sample(around.examples(), benign)]
    rows = [
        {"from": name}
        | ({"prompt": (chat and e.turn) or e.prompt, "response": e.target} if e.prompt else {"text": e.target})
        for name, e in examples
    ]
    names = " + ".join(d.ref.name for d in [*hidden, around])
    return replace(
        around, ref=DataRef(name=names), task=UserText(), rows=rows, split="train", source="mixture", place=None
    )
