"""Workers of pipelines that begin at once: forks of a process that has imported what they need.

All else is as in a real one: a process, a pipe, the environment and the folder of the command. How a real one begins is
seen where a test starts the command in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest

from ilu_cli.workflows.pipeline.launchers import local
from ilu_cli.workflows.pipeline.worker import serve

IMPORTED = [
    "ilu_cli.workflows.attack.run", "ilu_cli.workflows.unlearn", "ilu_cli.workflows.evaluate", "ilu_cli.harness.lm",
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


def begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of this test are forks."""
    monkeypatch.setattr(local, "CONTEXT", CONTEXT)
    monkeypatch.setattr(local, "serve", Serve())
