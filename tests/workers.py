"""Workers of pipelines, and commands, that begin at once: forks of a process that has imported what they need.

All else is as in a real one: a process, a pipe, the environment and the folder of the command. How a real one begins is
seen where a test starts the command in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ilu_cli.runs.lock import HOLDER
from ilu_cli.workflows.pipeline.launchers import local
from ilu_cli.workflows.pipeline.worker import serve

IMPORTED = [
    "ilu_cli.cli.app", "ilu_cli.workflows.attack.run", "ilu_cli.workflows.unlearn", "ilu_cli.workflows.evaluate",
    "ilu_cli.harness.lm",
    "lm_eval.api.task", "lm_eval.tasks",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


class Serve:
    """What a worker does, in the environment in which it was begun."""

    def __getstate__(self) -> dict[str, str]:
        return dict(os.environ)

    def __setstate__(self, environment: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(environment)

    def __call__(self, *args: Any) -> None:
        serve(*args)


class Command(Serve):
    """A command line with what it is told and where it says its own."""

    def __call__(self, args: list[str], *files: str) -> None:
        for name, descriptor, mode in zip(files, (0, 1, 2), (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
            os.dup2(os.open(name, mode), descriptor)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w") for i in (0, 1, 2))
        sys.argv = ["ilu", *args]
        from ilu_cli.cli.app import main

        main()


def command(place: Path, *args: object, told: str = "") -> subprocess.CompletedProcess[str]:
    """What `ilu` does in a process in which nothing was done before, with files for its streams in `place`."""
    files = [place / name for name in ("stdin", "stdout", "stderr")]
    for file, text in zip(files, (told, "", "")):
        file.write_text(text)
    words = [str(a) for a in args]
    process = CONTEXT.Process(target=Command(), args=(words, *map(str, files)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess(words, process.exitcode, files[1].read_text(), files[2].read_text())


def begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of this test are forks."""
    monkeypatch.setattr(local, "CONTEXT", CONTEXT)
    monkeypatch.setattr(local, "serve", Serve())


def when_it_trains(runs: Path, act: Callable[[int], None]) -> threading.Thread:
    """Do something with the pid of the process that unlearns, when it has kept a state."""

    def wait() -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            for holder in runs.glob(f"unlearn-*/{HOLDER}"):
                if list(holder.parent.glob("state/step-*.pt")):
                    with suppress(FileNotFoundError):  # it has let go since
                        pid = json.loads(holder.read_text())["pid"]
                        return act(pid)
            time.sleep(0.2)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
