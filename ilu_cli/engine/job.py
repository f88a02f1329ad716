"""A training job in a run folder: metrics, resumable states, a clean stop at Ctrl-C."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.errors import Interrupted
from ilu_cli.runs.store import Run
from ilu_cli.stopping import handled


def drive(
    trainer: Trainer, run: Run, reporter: Reporter, title: str, stage: str = "", *, after: int = 0
) -> Iterator[int]:
    """Do the steps that are left, yielding the number of steps done: first where it starts, then after each.

    A later `stage` of the run has states of its own, and its steps are counted on `after` those before it.

    Raises:
        Interrupted: after Ctrl-C, when the state is on disk.
        RunFailed: if a loss is not finite.
        UnavailableError: if a model that the run is made from is gone, when the state is on disk.
    """
    main = trainer.backend.main
    start = after + load_state(trainer, run.state / stage, reporter.note)
    metrics = run.path / "metrics.jsonl"
    if main:
        _cut(metrics, start)
    if start > after:
        reporter.note(f"continuing after step {start}")
    yield start
    reporter.begin(title, after + trainer.spec.steps, start)
    every = trainer.spec.save_every
    try:
        with _stop_flag(reporter) as stopped, metrics.open("a", encoding="utf-8") as out:
            for log in (replace(log, step=after + log.step, steps=after + log.steps) for log in trainer.run()):
                if main:
                    out.write(json.dumps(log.row()) + "\n")
                    out.flush()
                reporter.step(log)
                stop, gone = _anywhere(trainer, stopped.is_set(), bool(run.missing_parent()))
                if stop or gone or (every and log.step % every == 0 and log.step < log.steps):
                    save_state(trainer, run.state / stage)
                if stop:
                    where = f"stopped after step {log.step} of {log.steps}"
                    raise Interrupted(where, hint=f"continue with `{run.resume_command}`")
                run.check_parents(f"stopped after step {log.step} of {log.steps}")
                yield log.step
        if main:
            _cut(metrics, after + trainer.step)  # a budget may have taken steps back
    finally:
        reporter.end()


def _cut(metrics: Path, steps: int) -> None:
    """Keep the rows of so many steps."""
    kept = metrics.read_text(encoding="utf-8").splitlines()[:steps] if metrics.exists() else []
    metrics.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _anywhere(trainer: Trainer, *flags: bool) -> list[bool]:
    """Which of the flags are set on some process."""
    return [n > 0 for n in trainer.backend.sum(torch.tensor(flags, dtype=torch.float32)).tolist()]


@contextmanager
def _stop_flag(reporter: Reporter) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a flag, looked at between steps; the second interrupts at once."""
    flag = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        flag.set()
        restore()
        reporter.stopping()

    with handled(stop) as restore:
        yield flag
