from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.attacks import Schedule, Stop
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.refs import DataRef, TaskRef
from ilu_cli.recipe.specs import Form, LoraSpec, PrecisionOrAuto, Some, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="training", unattacked=0)
def finetune(
    attempt: Attempt,
    *,
    task: TaskRef = DataRef(name="sst2"),
    steps: PositiveInt = 60,
    stop: Stop = "steps",
    lr: PositiveFloat = 5e-5,
    schedule: Schedule = "constant",
    batch: PositiveInt = 16,
    max_length: PositiveInt = 128,
    chat: bool = False,
    chat_system: ChatSystem = None,
    chat_date: ChatDate = None,
    accumulation: PositiveInt = 1,
    precision: PrecisionOrAuto = "auto",
    save_every: PositiveInt = 50,
    test_rows: PositiveInt = 200,
    weights: Some[str] | None = None,
    lora: LoraSpec | None = None,
) -> Iterator[int]:
    """Fine-tune on an unrelated downstream task, and look at first quartile, median and final step.

    The protocol of arXiv 2506.01339: the loss counts targets only; FA is the accuracy on the task's test rows.
    `stop: plateau` trains until that accuracy has settled, at most `steps`. `lora` trains an adapter; `weights` are
    glob patterns of all that is trained.
    """
    from ilu_cli.attacks import fine_tune, task_split

    spec = TrainSpec(
        steps=steps, lr=lr, schedule=schedule, accumulation=accumulation, precision=precision, save_every=save_every,
        params=weights,
    )  # fmt: skip
    train, test = task_split(task, test_rows)
    form = Form(max_length=max_length, chat=chat, chat_system=chat_system, chat_date=chat_date)
    admitted, test = attempt.admit(train), attempt.admit(test, test=True)
    yield from fine_tune(attempt, [admitted], test, spec, batch, form, lora, stop, test_rows)
