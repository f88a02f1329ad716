"""What the benchmarks of training steps share: plain transformers and ilu take turns; memory, each in its own process.

A script gives two functions that make a step, `plain` and `ilu`. The time is the median of the turns in one process,
the ratio that of pairs; memory is the most that a process of its own has held after a few steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
from measure import tell, turns

from ilu_cli.data.encode import Batch, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.load import find, load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import DEFAULT_MODEL
from ilu_cli.workflows.settle import settled
from ilu_cli.workflows.training import Streams, build_trainer

Step = Callable[[], object]
STEPS = 4  # before memory is looked at


def held(script: str, which: str, sets: Sequence[str]) -> int:
    """The most bytes of a process that does a few steps of one kind."""
    line = [sys.executable, script, "--memory", which, *(f"--set={s}" for s in sets)]
    return int(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(script: str, name: str, makers: dict[str, Callable[[list[str]], Step]], repeats: int = 7) -> None:
    """Print {name, plain_s, ilu_s, ratio, plain_bytes, ilu_bytes} as a line of JSON; `makers` is first and second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--memory", choices=list(makers), help="only print the bytes that this one takes")
    parser.add_argument("--set", action="append", default=[], help="a key of ilu's recipe, as for `ilu unlearn`")
    args = parser.parse_args()
    if args.memory:
        step = makers[args.memory](args.set)
        for _ in range(STEPS):
            step()
        print(backend().peak_memory())
        return
    plain, ours = makers
    took = turns({which: make(args.set) for which, make in makers.items()}, args.repeats)
    tell(name, took[plain], took[ours], **{f"{which}_bytes": held(script, which, args.set) for which in makers})


def trainer_of(recipe: str, sets: Sequence[str]) -> Trainer:
    """The trainer of a shipped recipe on the built-in model."""
    wanted = load(UnlearnRecipe, find(recipe), {}, ["train.precision=bf16", *sets])
    subject = find_model(DEFAULT_MODEL)
    model, tokenizer = load_model(subject, backend().device), load_tokenizer(subject.folder)
    wanted = settled(wanted, model)
    scorer = Scorer(model, parts_of(model), tokenizer, backend())
    return build_trainer(wanted, Streams.of(wanted, tokenizer), scorer)


def stepping(trainer: Trainer) -> Step:
    """A step of a trainer, whose rows go on from call to call."""
    run = trainer.run()
    return lambda: next(run)


def rows_of(stream: TrainStream, step: int) -> Batch:
    """All rows of a step, padded."""
    return collate([stream.item(key) for key in stream.keys(step)])


def labels_of(batch: Batch) -> torch.Tensor:
    """What transformers takes as labels: the scored tokens, −100 elsewhere."""
    return batch.ids.masked_fill(~batch.scored, -100)
