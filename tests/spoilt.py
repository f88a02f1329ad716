"""Runs ilu in the processes of one launch of which the last is not given the same as the others, or fails alone.

    accelerate launch … tests/spoilt.py CASE…

Each process writes `RANK.CASE.json`: its exit code and what it said. The folder `last` is where the last process works.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ilu_cli.cli.app import main
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter
from ilu_cli.runs import store
from ilu_cli.workflows import unlearn as unlearn  # which takes seconds

LAST = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
COMMAND = ["unlearn", "--method", "npo", "--model", "tiny", "--forget", "facts.jsonl", "--steps", "4"]
KEYS = ["forget.batch=4", "retain.batch=4", "retain.data=[elements]", "forget.max_length=24", "retain.max_length=24",
        "train.precision=fp32"]  # fmt: skip
GIVEN = {
    "key": ["--set", "train.lr=5e-4"],
    "recipe": ["--recipe", "nowhere.yaml"],
    "usage": ["--no-such-option"],
    "dry": ["--dry-run"],
    "model": ["--model", "gone"],
}


def stop(error: BaseException | None) -> Callable[[Any, StepLog], None]:
    """A reporter's step that ends this process by an error, or by SIGKILL."""

    def step(_self: Any, log: StepLog) -> None:
        if log.step == 2:
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise error

    return step


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def run(case: str) -> None:
    """One case; its files."""
    sys.argv, here = ["ilu", *COMMAND, *(part for key in KEYS for part in ("--set", key))], Path.cwd()
    rank, errors, code, began = os.environ["RANK"], io.StringIO(), 0, time.monotonic()
    if case == "damaged":
        sys.argv += ["--model", "nowhere-finite"]
    if LAST and case in GIVEN:
        sys.argv += [f"../{a}" if a == "tiny" else a for a in GIVEN[case]]
    if LAST and (place := Path(case)).is_dir():
        os.chdir(place)
    known = store.versions
    if LAST and case == "version":
        store.versions = lambda: {**known(), "torch": "0.1"}
    if LAST and case in ("memory", "killed"):
        error = torch.OutOfMemoryError("out of memory") if case == "memory" else None
        Reporter.step = stop(error)  # type: ignore[method-assign, assignment]
    if case == "full":
        sys.argv += ["--set", "train.save_every=1"]
        torch.save = full  # type: ignore[assignment]
    try:
        with contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        store.versions = known
        os.chdir(here)
    seconds = time.monotonic() - began
    Path(f"{rank}.{case}.json").write_text(json.dumps({"code": code, "said": errors.getvalue(), "seconds": seconds}))
    if case in ("memory", "full", "damaged"):
        os._exit(code)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(name)
