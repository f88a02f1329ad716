"""Ctrl-C, SIGTERM and SIGHUP: one way to stop, from the first moment of the process. Nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

CODE = 130  # the exit code of what a user has stopped

asked = threading.Event()  # libraries that are being imported may turn an interruption into an error of their own


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask to stop, without those that the caller has told us to ignore (`nohup`)."""
    known = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [s for s in known if signal.getsignal(s) is not signal.SIG_IGN]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    asked.set()
    raise KeyboardInterrupt


def install() -> None:
    """Make every such signal a KeyboardInterrupt."""
    asked.clear()
    if threading.current_thread() is threading.main_thread():
        for number in stopping_signals():
            signal.signal(number, _interrupt)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[Callable[[], None]]:
    """Signals that ask to stop go to `handler`, until the end or until what is given is called.

    In any thread but the main one, which gets all signals, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in stopping_signals()} if main else {}

    def restore() -> None:
        for number, known in before.items():
            signal.signal(number, known)

    for number in before:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()


@contextmanager
def deferred() -> Iterator[None]:
    """A signal that asks to stop waits until what is inside is done; a launcher sends one once a process has failed."""
    came: list[int] = []
    with handled(lambda number, _frame: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


def end_at_once() -> None:
    """Say that nothing was begun, and end: for what comes before there is a command line."""
    os.write(2, b"error: interrupted before anything was begun\n")
    os._exit(CODE)


def leave() -> None:
    """End with the code of an interruption, now that all is said.

    Where the interruption hit code that Python runs on behalf of C, Python would end itself by SIGINT instead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CODE)


def too_late() -> None:
    """All is done and said: a signal while Python takes itself apart changes no exit code."""
    for number in stopping_signals():
        signal.signal(number, signal.SIG_IGN)
