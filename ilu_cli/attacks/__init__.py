"""Attempts to bring the forgotten back, one per file.

An attack is a generator: it changes the model of its `Attempt`, or how it is asked, or how it is read, and yields its
strength whenever evaluation should look. It declares

- `strength`: the name of its axis (steps, bits, k, …);
- `access`: what the attacker needs, `training`, `weights`, `activations` or `prompts`;
- `unattacked`: the strength at which nothing is changed. That point is evaluated before the attack begins;
- `utility`: False if what else the model knows cannot change (other prompts) or means nothing (a probe);
- `original`: True if it looks at the original's weights, which must then have the shapes of the model's;
- `alone`: False if its numbers mean nothing without those of the original under the same attack;
- `forget`: `taught` if it trains on rows of the forget data on purpose, `held out` if it claims to hold none of them;
- `problems`: what is impossible in a recipe of it although every key is right by itself, as `(key, message)`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ilu_cli import registry
from ilu_cli.errors import UsageError, near

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from ilu_cli.benchmarks import Row
    from ilu_cli.data.sources import Dataset
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.models.parts import Parts
    from ilu_cli.recipe.refs import DataRef
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.recipe.source import Key
    from ilu_cli.recipe.specs import Form, LoraSpec, TrainSpec

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

    def tune(
        self, parts: Parts, params: dict[str, Parameter], data: Sequence[Dataset], spec: TrainSpec, batch: int,
        form: Form,
    ) -> Iterator[int]:  # fmt: skip
        """Train these parameters of these parts instead of the model's own, yielding the number of steps done."""

    def test(self, data: Dataset, limit: int, step: int) -> list[float]:
        """Measure the accuracy on a task's test rows as FA; return all FAs so far. Plain text has no answers: no FA."""

    def record(self, data: Dataset, role: str) -> None:
        """Name in the run's manifest a dataset that is read and not trained on. The role `attack` is for training."""

    def transform(self, change: Callable[[Tensor, str], Tensor]) -> None:
        """Put `change(weight, name)` for every matrix of the decoder's layers, from the weights before the attack.

        Matrices are those of linear maps and convolutions, and each expert's, seen as [outputs, inputs]. Norms, biases,
        routers, embeddings and the LM head are left as they are.
        """

    def weights(self, ref: str | None = None) -> Mapping[str, Tensor]:
        """The parameters of another model, by name, in float32; each is read when it is used. None: the original's.

        Raises:
            UnavailableError: if they are not those of the model under attack, in name and shape.
        """

    def mix(self, change: Callable[[Tensor, str], Tensor]) -> None:
        """Put `change(weight, name)` for every parameter, whole, from the weights before the attack."""

    def questions(self, *, needed: bool = True) -> dict[str, list[Row]]:
        """The items of the multiple-choice forget benchmarks, by benchmark: `question`, `choices`, `answer`.

        Raises:
            UsageError: if they are `needed` and there are none.
        """

    def parted(self, share: float, name: str) -> dict[str, tuple[Dataset, list[Row]]]:
        """Of each forget benchmark a share of its facts, as rows to teach, and the items that ask for others.

        Both share no subject and no answer; they are drawn by the seed and the attack's `name`. Items that ask for no
        fact of the topic are asked with the others.

        Raises:
            UsageError: if no benchmark has facts, or one side is empty.
        """

    def variants(self, kind: str) -> dict[str, dict[str, list[Row]]]:
        """The same items asked in other ways of this kind, by name and benchmark, for the benchmarks that have them."""

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

    def tell(self, name: str, value: float | None) -> None:
        """Keep a number of the attack's own beside its points, and tell the user."""

    def note(self, text: str) -> None:
        """Tell the user."""


def variant_problems(kind: str, key_name: str) -> Callable[..., Iterator[tuple[Key, str]]]:
    """What is impossible in a recipe that asks the questions in other ways of a kind, whose names are in `key_name`."""

    def problems(own: Any, key: Key, recipe: AttackRecipe) -> Iterator[tuple[Key, str]]:
        benches = [registry.benchmark[name].obj for name in recipe.eval.names if name in registry.benchmark]
        known = [name for bench in benches if bench.role == "forget" for name in bench().variants(kind, [])]
        if not known:
            has = "other wordings" if kind == "rephrase" else f"questions for {kind}"
            yield ("eval", "benchmarks"), f"none is a forget benchmark with {has}, so there is nothing to {kind}"
        for i, name in enumerate(getattr(own, key_name) or []):
            if known and name not in known:
                one = key_name.removesuffix("s")
                yield (*key, key_name, i), f"unknown {one} {name!r}.{near(name, known)} Known: {', '.join(known)}"

    return problems


def ask_variants(attempt: Attempt, kind: str, wanted: Sequence[str] | None) -> Iterator[int]:
    """Ask in the wanted ways of a kind, or in all, yielding the number of each; the label of a point names it.

    A way that a question does not have is asked of the others.

    Raises:
        UsageError: if no question has it.
    """
    known = attempt.variants(kind)
    for name in wanted or known:
        items = {bench: others for bench, others in known[name].items() if others}
        if not items:
            raise UsageError(f"attack.{kind}: none of the questions can be asked in the way {name!r}; raise eval.limit")
        attempt.ask(items)
        attempt.name(name)
        yield list(known).index(name) + 1


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
    if stop == "plateau" and (test is None or not has_answers(test)):
        raise UsageError(
            "attack.stop: plateau waits until the accuracy on the task has settled, and there is none: the data are "
            "plain text, or too few to keep some for the test",
            hint="--set attack.stop=steps",
        )
    epoch = math.ceil(sum(len(d.rows) for d in data) / batch)
    marks = {*quartiles(spec.steps)} if stop == "steps" else {*range(epoch, spec.steps, epoch), spec.steps}
    for done in attempt.train(data, spec, batch, form, lora):
        if done not in marks:
            continue
        found: list[float] = []
        if test is not None and (stop == "plateau" or done == spec.steps):
            found = attempt.test(test, test_rows, done)
        yield done
        if stop == "plateau" and settled(found):
            break


def settled(accuracies: Sequence[float]) -> bool:
    """Whether accuracies, an epoch apart, have come to rest."""
    recent = accuracies[-EPOCHS - 1 :]
    return len(recent) > EPOCHS and max(recent) - min(recent) < SETTLED


def task_split(ref: DataRef, rows: int) -> tuple[Dataset, Dataset]:
    """Train and test rows of a task.

    Of a user's file, and of a task whose test split is trained on, every fifth row is kept for the test, up to `rows`.
    """
    from ilu_cli.data.sources import load_dataset

    whole = load_dataset(ref, "train")
    if "test" in whole.task.splits:
        apart = load_dataset(ref.model_copy(update={"split": None}), "test")
        if apart.split != whole.split:
            return whole, apart
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


def texts_to_fit(attempt: Attempt, refs: Sequence[DataRef], most: int, kind: str) -> list[str]:
    """Texts of datasets, at most so many, drawn by the seed: what an attack reads states of, and never asks.

    They are of the `test` split, and none contains a question of a multiple-choice benchmark of the forget topic.

    Raises:
        UsageError: if none is left.
    """
    datasets = [test_split(ref) for ref in refs]
    for found in datasets:
        attempt.record(found, "attack fit")
    questions = [i["question"] for items in attempt.questions(needed=False).values() for i in items]
    texts = [e.prompt + e.target for d in datasets for e in d.examples()]
    texts = [t for t in texts if not any(q in t for q in questions)]
    if not texts:
        raise UsageError(f"{kind}: every text of attack.data contains a question of the benchmark")
    return random.Random(f"{kind}-{attempt.seed}").sample(texts, min(most, len(texts)))


def samples_of(attempt: Attempt, refs: Sequence[DataRef], k: int, kind: str) -> list[Dataset]:
    """k rows in all of some datasets, drawn by the seed: as many of each, or as it has.

    Raises:
        UsageError: if k is smaller than the number of datasets.
    """
    from ilu_cli.data.sources import load_dataset

    if k < len(refs):
        raise UsageError(f"attack.k: {k} sample is too few for {len(refs)} datasets, of which each gives one")
    admitted = [attempt.admit(load_dataset(ref, "train")) for ref in refs]
    rng, samples = random.Random(f"{kind}-{attempt.seed}"), []
    for i, found in enumerate(admitted):
        share = (k - i - 1) // len(admitted) + 1  # k rows in all
        samples.append(replace(found, rows=rng.sample(found.rows, min(share, len(found.rows)))))
    return samples
