from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.attacks import Schedule
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.specs import Form, Fraction, LoraSpec, PrecisionOrAuto, Some, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="training", unattacked=0, forget="taught")
def rtt(
    attempt: Attempt,
    *,
    share: Fraction = 0.5,
    epochs: PositiveInt = 4,
    lr: PositiveFloat = 5e-5,
    schedule: Schedule = "constant",
    batch: PositiveInt = 8,
    max_length: PositiveInt = 256,
    chat: bool = False,
    chat_system: ChatSystem = None,
    chat_date: ChatDate = None,
    precision: PrecisionOrAuto = "auto",
    weights: Some[str] | None = None,
    lora: LoraSpec | None = None,
) -> Iterator[int]:
    """Retrain on some facts T, and ask for others V: what comes back there was hidden, and not taught anew.

    Retraining on T, arXiv 2410.08827: T is a `share` of the benchmark's own questions with their right answers, V the
    rest; both share no subject and no answer, by country or author where the benchmark knows them, else by rare words.
    All points, the one before the attack too, are of V. The paper trains on several wordings of each question and
    tunes the rate; here the question as it stands, and `best_of` or a search for the rate. The loss counts the answer.

    Raises:
        UsageError: if no benchmark of the forget topic asks for facts, or T or V is empty.
    """
    import math

    from ilu_cli.attacks import fine_tune

    sides = attempt.parted(share, "rtt")
    data = [taught for taught, _ in sides.values()]
    attempt.ask({bench: left for bench, (_, left) in sides.items()})
    yield 0
    steps = epochs * math.ceil(sum(len(d.rows) for d in data) / batch)
    spec = TrainSpec(steps=steps, lr=lr, schedule=schedule, precision=precision, params=weights)
    form = Form(max_length=max_length, chat=chat, chat_system=chat_system, chat_date=chat_date)
    yield from fine_tune(attempt, data, None, spec, batch, form, lora)
