from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.attacks import Schedule
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.refs import DataRefs
from ilu_cli.recipe.specs import Form, LoraSpec, PrecisionOrAuto, Some, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="training", unattacked=0, forget="taught")
def relearn(
    attempt: Attempt,
    *,
    data: DataRefs | None = None,
    k: PositiveInt = 60,
    epochs: PositiveInt = 1,
    lr: PositiveFloat = 5e-5,
    schedule: Schedule = "constant",
    batch: PositiveInt = 4,
    max_length: PositiveInt = 128,
    chat: bool = False,
    chat_system: ChatSystem = None,
    chat_date: ChatDate = None,
    precision: PrecisionOrAuto = "auto",
    weights: Some[str] | None = None,
    lora: LoraSpec | None = None,
) -> Iterator[int]:
    """Fine-tune on k samples of the forget data (60 samples, one epoch): does the rest of it come back too?

    Targeted relearning, arXiv 2406.13356 and 2402.16835; the 60-sample epoch is that of arXiv 2502.05374. The samples
    are drawn by the seed from `data`, by default the forget data of the unlearned model's own recipe. Beside the
    accuracy on all questions each point tells it for those whose answer none of the samples names (`unseen`): only
    what comes back there was hidden and not taught anew. A step is always `batch` samples: where they do not divide k,
    the last batch of an epoch is filled up from the next (k 10 and batch 4 are three steps, in which two samples are
    seen twice).

    Raises:
        UsageError: if k is smaller than the number of datasets.
    """
    import math

    from ilu_cli.attacks import fine_tune, samples_of

    samples = samples_of(attempt, data or [], k, "relearn")
    steps = epochs * math.ceil(sum(len(s.rows) for s in samples) / batch)
    spec = TrainSpec(steps=steps, lr=lr, schedule=schedule, precision=precision, params=weights)
    form = Form(max_length=max_length, chat=chat, chat_system=chat_system, chat_date=chat_date)
    yield from fine_tune(attempt, samples, None, spec, batch, form, lora)
