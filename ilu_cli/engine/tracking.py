"""What is reported to TensorBoard, Weights & Biases or MLflow: the recipe once, and every step's row of metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter
from ilu_cli.recipe.source import flat
from ilu_cli.runs.store import Run

SCALARS = (bool, int, float, str)


def plain(name: str) -> str:
    """`D/gsm8k` for `D[gsm8k]`: trackers group by slashes, and MLflow refuses brackets and other signs."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("[", "/").rstrip("]"))


class Tracked(Reporter):
    """Passes everything on to another reporter, and losses, D, learning rate and gradient norm to trackers too."""

    def __init__(self, inner: Reporter, names: Sequence[str], run: Run, recipe: dict[str, Any]) -> None:
        self.inner, self.names, self.run = inner, names, run
        self.open: list[Any] = []
        self.note, self.stopping = inner.note, inner.stopping  # type: ignore[method-assign]
        self.recipe = {k: v if isinstance(v, SCALARS) else str(v) for k, v in flat(recipe).items()}

    def begin(self, title: str, total: int, done: int) -> None:
        if backend().main:
            self.open = backend().trackers(self.names, self.run.path, self.run.id, self.recipe, done)
        self.inner.begin(title, total, done)

    def step(self, log: StepLog) -> None:
        for tracker in self.open:
            tracker.log({plain(k): v for k, v in log.row().items() if k != "step"}, step=log.step)
        self.inner.step(log)

    def end(self) -> None:
        self.inner.end()
        while self.open:
            self.open.pop().finish()
