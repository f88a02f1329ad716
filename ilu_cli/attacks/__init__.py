"""Attempts to bring the forgotten back, one per file.

An attack is a generator: it changes the model of its `Attempt`, or how it is asked, or how it is read, and yields its
strength whenever evaluation should look. It declares

- `strength`: the name of its axis (steps, bits, k, …);
- `access`: what the attacker needs, `training`, `weights`, `activations` or `prompts`;
- `unattacked`: the strength at which nothing is changed. That point is evaluated before the attack begins;
- `utility`: False if what else the model knows cannot change (other prompts) or means nothing (a probe);
- `original`: True if it looks at the original's weights, which must then have the shapes of the model's;
- `problems`: what is impossible in a recipe of it although every key is right by itself, as `(key, message)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.benchmarks import Row
    from ilu_cli.data.sources import Dataset
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.recipe.specs import DataRef, Form, LoraSpec, TrainSpec

Schedule = Literal["constant", "linear", "cosine"]
Stop = Literal["steps", "plateau"]
SETTLED, EPOCHS = 0.01, 3  # fine-tuning is over when FA moves by less than 1 % over three epochs


class Attempt(Protocol):
    """What an attack may use, as `workflows.attack.attempt` provides it. Each change replaces the one before it."""

    seed: int

    @property
    def scorer(self) -> Scorer:
        """The model under attack: `scorer.model`, `scorer.parts`, `scorer.tokenizer`."""

    def admit(self, data: Dataset, *, test: bool = False) -> Dataset:
        """The rows of an attacker's dataset, or of that for its `test`, that were not environment data."""

    def train(
        self, data: Sequence[Dataset], spec: TrainSpec, batch: int, form: Form, lora: LoraSpec | None = None
    ) -> Iterator[int]:
        """Fine-tune the model on the targets of datasets taken in turn, yielding the number of steps done."""

    def test(self, data: Dataset, limit: int, step: int) -> list[float]:
        """Measure the accuracy on a task's test rows as FA; return all FAs so far. Plain text has no answers: no FA."""

    def record(self, data: Dataset, role: str) -> None:
        """Name in the run's manifest a dataset that is read and not trained on. The role `attack` is for training."""

    def transform(self, change: Callable[[Tensor, str], Tensor]) -> None:
        """Put `change(weight, name)` for every matrix of the decoder's layers, from the weights before the attack.

        Matrices are those of linear maps and convolutions, and each expert's, seen as [outputs, inputs]. Norms, biases,
        routers, embeddings and the LM head are left as they are.
        """

    def questions(self, *, needed: bool = True) -> dict[str, list[Row]]:
        """The items of the multiple-choice forget benchmarks, by benchmark: `question`, `choices`, `answer`.

        Raises:
            UsageError: if they are `needed` and there are none.
        """

    def rephrasings(self) -> dict[str, dict[str, list[Row]]]:
        """The same items in other words, by wording and benchmark, for the benchmarks that have them."""

    def ask(self, items: dict[str, list[Row]]) -> None:
        """Evaluate these items instead."""

    def read(self, scorer: Scorer) -> None:
        """Let this scorer answer the questions instead of the model."""

    def hook(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        """Change the output [B, T, D] of these layers."""

    def original(self) -> AbstractContextManager[None]:
        """The weights of the original model, for a while."""

    def name(self, label: str) -> None:
        """Say in words what the next point is."""

    def note(self, text: str) -> None:
        """Tell the user."""


def quartiles(steps: int) -> list[int]:
    """The steps at which a fine-tuning run is looked at: first quartile, median, final."""
    return sorted({max(1, round(steps / 4)), max(1, round(steps / 2)), steps})


def fine_tune(
    attempt: Attempt, data: Sequence[Dataset], test: Dataset | None, spec: TrainSpec, batch: int, form: Form,
    lora: LoraSpec | None = None, stop: Stop = "steps", test_rows: int = 200,
) -> Iterator[int]:  # fmt: skip
    """Train, and yield at the quartiles of `spec.steps`, or after every epoch until FA has settled.

    With `plateau`, `spec.steps` is the most that is done. arXiv 2506.01339 stops when the accuracy on the task moves by
    less than 1 % over three epochs; here: when the last four measurements, an epoch apart, lie within 0.01.

    Raises:
        UsageError: if there is no accuracy that could settle.
    """
    if stop == "plateau":
        _check_answers(test)
    epoch, marks = math.ceil(sum(len(d.rows) for d in data) / batch), quartiles(spec.steps)
    for done in attempt.train(data, spec, batch, form, lora):
        last, settled = done == spec.steps, False
        look = done in marks if stop == "steps" else bool(done) and done % epoch == 0
        if test is not None and (last or (look and stop == "plateau")):
            settled = _settled(attempt.test(test, test_rows, done))
        if look or last:
            yield done
        if settled and stop == "plateau":
            break


def _check_answers(test: Dataset | None) -> None:
    """Check that there is an accuracy to wait for.

    Raises:
        UsageError: if there is none.
    """
    if test is None or not has_answers(test):
        raise UsageError(
            "attack.stop: plateau waits until the accuracy on the task has settled, and there is none: the data are "
            "plain text, or too few to keep some for the test",
            hint="--set attack.stop=steps",
        )


def _settled(accuracies: list[float]) -> bool:
    """Whether the last measurements, one more than `EPOCHS`, lie within `SETTLED`."""
    recent = accuracies[-EPOCHS - 1 :]
    return len(recent) > EPOCHS and max(recent) - min(recent) < SETTLED


def task_split(ref: DataRef, rows: int) -> tuple[Dataset, Dataset]:
    """Train and test rows of a task. Of a user's file every fifth row is kept for the test, up to `rows`."""
    from ilu_cli.data.sources import load_dataset

    whole = load_dataset(ref, "train")
    if "test" in whole.task.splits:
        return whole, load_dataset(ref.model_copy(update={"split": None}), "test")
    kept = set(range(0, len(whole.rows), 5)[:rows]) if len(whole.rows) > 5 else set[int]()
    parts: Any = ([r for i, r in enumerate(whole.rows) if (i in kept) == t] for t in (False, True))
    train, test = (replace(whole, rows=part) for part in parts)
    return train, test


def has_answers(data: Dataset) -> bool:
    """Whether there are rows with answers to judge, rather than plain text."""
    return bool(data.rows) and bool(data.task.example(data.rows[0]).prompt)


def test_split(ref: DataRef) -> Dataset:
    """The test split of a dataset, or `ref.split`; of a user's file, which has no other, the training rows."""
    from ilu_cli.data.sources import load_dataset

    data = load_dataset(ref, "train")
    return load_dataset(ref, "test") if "test" in data.task.splits and ref.split is None else data
