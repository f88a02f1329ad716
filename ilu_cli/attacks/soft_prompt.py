from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.recipe.specs import Form, Fraction, PrecisionOrAuto, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps", access="activations", unattacked=0, utility=False, alone=False)
def soft_prompt(
    attempt: Attempt,
    *,
    tokens: PositiveInt = 8,
    share: Fraction = 0.5,
    steps: PositiveInt = 60,
    lr: PositiveFloat = 5e-3,
    batch: PositiveInt = 8,
    precision: PrecisionOrAuto = "auto",
) -> Iterator[int]:
    """Learn vectors that stand before every question, on some of the questions, and ask the others.

    Attacks in embedding space (arXiv 2402.09063). The model stays as it is; only `tokens` vectors are trained, with the
    answers of a `share` T of the benchmark's questions, drawn by the seed. All points, the one before the attack too,
    are of the other questions V, which share no subject and no answer with T (as in `rtt`). A long enough prompt
    elicits anything from any model (arXiv 2502.15836), so this means nothing without the reference line: the original
    under the same training.

    Raises:
        UsageError: if T or V is empty; the plan refuses too a prompt that does not fit into the model's context beside
            a question.
    """
    from ilu_cli.attacks import quartiles
    from ilu_cli.engine.prompted import prompted

    scorer, vectors = prompted(attempt.scorer, tokens, attempt.seed)
    sides = attempt.parted(share, "soft_prompt")
    held, data = {bench: asked for bench, (_, asked) in sides.items()}, [taught for taught, _ in sides.values()]
    attempt.ask(held)
    yield 0
    attempt.read(scorer)
    spec = TrainSpec(steps=steps, lr=lr, precision=precision, save_every=0)
    chat = scorer.chat
    form = Form(max_length=scorer.context_length)
    if chat is not None:
        form = form.model_copy(update={"chat": True, "chat_system": chat.system, "chat_date": chat.date})
    for done in attempt.tune(scorer.parts, {"prompt": vectors}, data, spec, batch, form):
        if done in quartiles(steps):
            yield done
