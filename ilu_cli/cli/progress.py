"""Progress of a long job: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ilu_cli.cli.console import clock, drawing, err, size
from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter

if TYPE_CHECKING:
    from rich.live import Live as Screen
    from rich.text import Text

PLAIN_LINES = 10  # lines that a job prints without a terminal
WIDEST = 100  # columns of the live view
WINDOW = 20  # steps whose mean time tells how long the rest takes
BARS = "▁▂▃▄▅▆▇█"
STOPPING = "stopping after this step; Ctrl-C again stops at once"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a curve in at most `width` characters, lowest to highest; each is the mean of its share."""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)] if count > 0 else []
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((m - low) * scale)] for m in means)


def progress_bar(share: float, width: int) -> tuple[str, str]:
    """The done and the open part of a bar."""
    done = round(share * width)
    return "━" * done, "─" * (width - done)


def terms(log: StepLog) -> str:
    """The loss terms and D's of a step on one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in log.losses.items())


class Course:
    """What is known of a job so far: how far it is, how fast, and the curve of every loss term."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.curves: dict[str, list[float]] = {}
        self.recent: list[StepLog] = []
        self.stopping = False

    def add(self, log: StepLog) -> None:
        self.done = log.step
        self.recent = [*self.recent[1 - WINDOW :], log]
        for name, value in log.losses.items():
            self.curves.setdefault(name, []).append(value)

    @property
    def pace(self) -> float:
        """Seconds a step."""
        return sum(log.seconds for log in self.recent) / len(self.recent)

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return sum(log.tokens for log in self.recent) / sum(log.seconds for log in self.recent)

    @property
    def left(self) -> float:
        """Seconds to go."""
        return self.pace * (self.total - self.done)


def frame(course: Course, memory: int, width: int) -> Text:
    """The live view, no line of it wider than `width` (at least 40): progress, one line a term, and the facts."""
    from rich.text import Text

    width = min(width, WIDEST)
    counter = f"{course.done}/{course.total}"
    timing = f"{clock(course.left)} left" if course.recent and course.done < course.total else ""
    bar_width = max(8, min(30, width // 4))
    title_width = width - bar_width - len(counter) - len(timing) - 6
    done, rest = progress_bar(course.done / course.total, bar_width)
    title = Text(course.title, "bold", no_wrap=True)
    title.truncate(title_width, overflow="ellipsis")
    lines = [Text.assemble(title, "  ", (done, "green"), (rest, "dim"), "  ", counter, "  ", (timing, "dim"))]
    names = max((len(name) for name in course.curves), default=0)
    names = min(names, width // 3)
    for name, curve in course.curves.items():
        label = Text(name, no_wrap=True)
        label.truncate(names, overflow="ellipsis", pad=True)
        value = f"{curve[-1]:>10.4g}"
        spark = sparkline(curve, width - names - len(value) - 6)
        lines.append(Text.assemble("  ", label, "  ", value, "  ", (spark, "cyan")))
    lines.append(Text(f"  {facts(course, memory, width - 2)}", "dim", no_wrap=True))
    return Text("\n").join(lines)


def facts(course: Course, memory: int, width: int) -> str:
    """Memory, speed, learning rate and gradient norm; as many of them as fit. A stop under way comes before all."""
    if course.stopping:
        return STOPPING if len(STOPPING) <= width else "stopping after this step"
    parts = [f"{size(memory)} peak"]
    if course.recent:
        log = course.recent[-1]
        parts += [f"{course.speed:,.0f} tok/s", f"lr {log.lr:.3g}", f"‖g‖ {log.grad_norm:.3g}"]
    while len(" · ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return " · ".join(parts)


class Live(Reporter):
    """A small view that is drawn over itself a few times a second."""

    def __init__(self) -> None:
        self.course: Course | None = None
        self.screen: Screen | None = None

    def begin(self, title: str, total: int, done: int) -> None:
        from rich.live import Live as Screen

        self.course = Course(title, total, done)
        self.screen = Screen(get_renderable=self._frame, console=err(), refresh_per_second=4)
        self.screen.start()

    def _frame(self) -> Text:
        assert self.course is not None
        return frame(self.course, backend().peak_memory(), err().width)

    def step(self, log: StepLog) -> None:
        if self.course is not None:
            self.course.add(log)

    def stopping(self) -> None:
        if self.course is not None:
            self.course.stopping = True

    def note(self, text: str) -> None:
        err().print(text, style="dim", markup=False)

    def end(self) -> None:
        if self.screen is not None:
            self.screen.stop()  # the last frame stays
            self.screen = self.course = None


class Plain(Reporter):
    """About ten lines a job."""

    def begin(self, title: str, total: int, done: int) -> None:
        self.course = Course(title, total, done)
        err().print(f"{title}: {total} steps", markup=False, soft_wrap=True)

    def step(self, log: StepLog) -> None:
        self.course.add(log)
        every = max(1, log.steps // PLAIN_LINES)
        if log.step % every and log.step not in (1, log.steps):
            return
        line = (
            f"step {log.step}/{log.steps}  {terms(log)}  {self.course.speed:,.0f} tok/s  {clock(self.course.left)} left"
        )
        err().print(line, markup=False, soft_wrap=True)

    def stopping(self) -> None:
        os.write(2, f"{STOPPING}\n".encode())  # in a signal handler: what is buffered must not be entered again

    def note(self, text: str) -> None:
        err().print(text, markup=False, soft_wrap=True)


def reporter() -> Reporter:
    """A progress display for a terminal, or plain lines; silent on all but the main process."""
    if not backend().main:
        return Reporter()
    return Live() if drawing() else Plain()
