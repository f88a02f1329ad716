"""Progress of a long job: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ilu_cli.cli.console import err
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter

PLAIN_LINES = 10  # lines that a job prints without a terminal


def terms(log: StepLog) -> str:
    """The loss terms and D's of a step on one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in log.losses.items())


class Live(Reporter):
    """A rich progress bar with losses, tokens per second and time left."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def begin(self, title: str, total: int, done: int) -> None:
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[terms]}"),
            TextColumn("[dim]{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=err(),
        )
        self.task = self.bar.add_task(title, total=total, completed=done, terms="", speed="")
        self.bar.start()

    def step(self, log: StepLog) -> None:
        if self.bar is not None and self.task is not None:
            speed = f"{log.tokens / log.seconds:,.0f} tok/s"
            self.bar.update(self.task, completed=log.step, terms=terms(log), speed=speed)

    def note(self, text: str) -> None:
        err().print(f"[dim]{text}[/]", soft_wrap=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Plain(Reporter):
    """About ten lines a job."""

    def begin(self, title: str, total: int, done: int) -> None:
        self.began, self.done = time.monotonic(), done
        err().print(f"{title}: {total} steps", markup=False, soft_wrap=True)

    def step(self, log: StepLog) -> None:
        every = max(1, log.steps // PLAIN_LINES)
        if log.step % every and log.step not in (1, log.steps):
            return
        pace = (time.monotonic() - self.began) / max(1, log.step - self.done)
        left = pace * (log.steps - log.step)
        speed = f"{log.tokens / log.seconds:,.0f} tok/s"
        line = f"step {log.step}/{log.steps}  {terms(log)}  {speed}  {left:.0f} s left"
        err().print(line, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        err().print(text, markup=False, soft_wrap=True)
