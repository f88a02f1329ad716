from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.attacks import Schedule
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.refs import DataRef, TaskRef
from ilu_cli.recipe.specs import Form, LoraSpec, PrecisionOrAuto, Some, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="training", unattacked=0, forget="held out")
def relearn_benign(
    attempt: Attempt,
    *,
    text: TaskRef = DataRef(name="surroundings"),
    steps: PositiveInt = 40,
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
    """Fine-tune on text about the surroundings of the forget topic that holds none of its facts.

    Benign relearning with public information, arXiv 2406.13356: what comes back cannot have been taught. The built-in
    text tells of countries without naming a capital; `text` may be a jsonl file about another topic.
    """
    from ilu_cli.attacks import fine_tune
    from ilu_cli.data.sources import load_dataset

    spec = TrainSpec(steps=steps, lr=lr, schedule=schedule, precision=precision, params=weights)
    data = attempt.admit(load_dataset(text, "train"))
    form = Form(max_length=max_length, chat=chat, chat_system=chat_system, chat_date=chat_date)
    yield from fine_tune(attempt, [data], None, spec, batch, form, lora)
