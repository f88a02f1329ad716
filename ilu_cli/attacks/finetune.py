from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat, PositiveInt

from ilu_cli.recipe.specs import DataRef, Precision, TaskRef, TrainSpec
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt


@attack(strength="steps")
def finetune(
    attempt: Attempt,
    *,
    task: TaskRef = DataRef(name="sst2"),
    steps: PositiveInt = 60,
    lr: PositiveFloat = 5e-5,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    batch: PositiveInt = 16,
    max_length: PositiveInt = 128,
    accumulation: PositiveInt = 1,
    precision: Precision = "bf16",
    save_every: PositiveInt = 50,
    test_rows: PositiveInt = 200,
) -> Iterator[int]:
    """Fine-tune all weights on a downstream task, and look at 0, first quartile, median and final step.

    The protocol of arXiv 2506.01339: the loss counts targets only; FA is the accuracy on the task's test rows.
    """
    from ilu_cli.attacks import quartiles
    from ilu_cli.data.sources import load_dataset

    spec = TrainSpec(
        steps=steps,
        lr=lr,
        schedule=schedule,
        accumulation=accumulation,
        precision=precision,
        save_every=save_every,
    )
    marks = quartiles(steps)
    data = load_dataset(task, "train")
    for done in attempt.train(data, spec, batch, max_length):
        if done in marks:
            yield done
    if "test" in data.task.splits:  # a user's own data has none
        attempt.test(load_dataset(task.model_copy(update={"split": None}), "test"), test_rows)
