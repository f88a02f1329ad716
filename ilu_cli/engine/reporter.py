"""What a long job says while it runs. The base says nothing; the command line has one that draws."""

from __future__ import annotations

from ilu_cli.engine.loop import StepLog


class Reporter:
    """Silent. Override what you want to show."""

    def begin(self, title: str, total: int, done: int) -> None:
        """A job of `total` steps starts, `done` of them being done already."""

    def step(self, log: StepLog) -> None:
        """A training step is done."""

    def stopping(self) -> None:
        """The user asked to stop; the step under way is the last. Called in a signal handler."""

    def note(self, text: str) -> None:
        """Something a user should know."""

    def end(self) -> None:
        """The job that began is over."""
