"""What the processes of a launch tell each other beside sums: what they were asked for, and why one of them ends.

By the launcher's key-value store, which is there before processes can sum and after one of them has ended.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from ilu_cli.errors import IluError, RunFailed, UsageError, brief, tell

TIMEOUT = "ILU_LAUNCH_TIMEOUT"
DEFAULT = 1800.0  # s that a process waits for the others: the first may be hashing or writing a large model
CONNECT = 60.0  # s to reach the launcher's store
GRACE = 3.0  # s in which a process that failed has said so, once its connections are closed
TOLD = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # by a launcher, beside WORLD_SIZE
LOST = ("gloo/transport", "NCCL", "DistBackendError")  # where libraries say that a process at the other end is gone


class PeerEnded(RunFailed):
    """Another process of the launch has ended, and has said why; with its exit code."""

    def __init__(self, where: str, message: str, code: int) -> None:
        super().__init__(f"{where} ended: {message}")
        self.exit_code = code


class PeerLost(RunFailed):
    """Another process of the launch has ended without a word, or does not answer."""


class _Place:
    """This process among those of its launch, and how many commands and comparisons there have been.

    `left` is what the launcher has told a process that works alone.
    """

    command, compared = 0, itertools.count()
    left: dict[str, str] = {}


def launched() -> bool:
    """Whether a launcher with a store (torchrun, accelerate) has started this process beside others."""
    told = os.environ.get
    return int(told("WORLD_SIZE") or 1) > 1 and all(told(n) for n in TOLD)


def begin() -> None:
    """A command begins; what was said of the one before does not count any more."""
    os.environ |= _Place.left
    _Place.command, _Place.compared, _Place.left = _Place.command + 1, itertools.count(), {}


def first() -> bool:
    """Whether this process prints what all have found: the first of a launch, or one by itself."""
    return not launched() or _rank() == 0


def alone(what: str) -> bool:
    """Leave to the first process what is no work for several; whether this is it, which is in no launch from now on."""
    if not launched():
        return True
    if not first():
        return False
    tell(f"`ilu {what}` is work for one process: the first of this launch does it, the others have ended")
    _Place.left = {n: os.environ.pop(n) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", *TOLD) if n in os.environ}
    return True


def timeout() -> float:
    """Seconds that a process waits for the others before it ends.

    Raises:
        UsageError: if ILU_LAUNCH_TIMEOUT is not a number above 0.
    """
    text = os.environ.get(TIMEOUT)
    try:
        seconds = float(text) if text else DEFAULT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e7:
        raise UsageError(f"{TIMEOUT}={text} is not a number of seconds", hint=f"{DEFAULT:.0f} if it is not set")
    return seconds


def agree(what: str, facts: Mapping[str, Any]) -> None:
    """Wait until all processes have come here, and compare what they hold: the same keys with the same values.

    Raises:
        UsageError: if they differ, on all processes.
        PeerEnded: if one has ended instead.
        RunFailed: if one does not come.
    """
    if not launched():
        return
    rank, world = _rank(), int(os.environ["WORLD_SIZE"])
    mine = json.dumps({"of": what, "host": socket.gethostname(), "facts": dict(facts)}, default=str)
    place = f"{_Place.command}/{next(_Place.compared)}"
    store = _store()
    store.set(f"{place}/{rank}", mine)
    until = time.monotonic() + (wait := timeout())
    for other in range(world):
        while not store.check([f"{place}/{other}"]):
            if failed := _failure():
                raise failed
            if time.monotonic() > until:
                raise RunFailed(
                    f"process {other} of {world} has not come as far as process {rank} in {wait:.0f} s",
                    hint=f"see what it does; {TIMEOUT} says how many seconds it is waited for",
                )
            time.sleep(0.05)
    every = [json.loads(store.get(f"{place}/{other}")) for other in range(world)]
    for other, theirs in enumerate(every):
        if theirs["of"] != every[0]["of"]:
            raise _differ("the command", every[0], theirs, every[0]["of"], theirs["of"], other)
        a, b = every[0]["facts"], theirs["facts"]
        if differ := [key for key in {**a, **b} if a.get(key, ...) != b.get(key, ...)]:
            key, more = differ[0], f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
            raise _differ(f"{key}{more}", every[0], theirs, a.get(key), b.get(key), other)


def _differ(key: str, first: Any, other: Any, a: Any, b: Any, rank: int) -> UsageError:
    return UsageError(
        f"the processes of this launch were not given the same. {key}: {brief(a)} in process 0 on {first['host']}, "
        f"{brief(b)} in process {rank} on {other['host']}",
        hint="start all with the same recipe and keys, and with the same models, data and packages on every machine",
    )


def ends(error: IluError) -> IluError | None:
    """Before this process ends by an error: tell the others. None if another has spoken already.

    Of all processes one speaks: the first that failed, not those that miss it. The error of this process, if it is to
    speak; it has where it happened.
    """
    if not launched():
        return error
    lost = isinstance(error, PeerEnded | PeerLost) or error.exit_code == 130
    if lost and (failed := _failure(GRACE)):
        error.exit_code = failed.exit_code
        return None
    said = json.dumps({"rank": _rank(), "host": socket.gethostname(), "code": error.exit_code, "message": str(error)})
    try:
        return error if _store().compare_set(f"{_Place.command}/ended", "", said).decode() == said else None
    except RuntimeError:  # the launcher is gone too
        return error


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Around what processes do together: where a connection breaks because another has failed, its error is raised.

    Raises:
        PeerEnded: instead of what a library says.
    """
    try:
        yield
    except RuntimeError as error:
        if launched() and is_lost(error) and (failed := _failure(GRACE)):
            raise failed from error
        raise


def is_lost(error: BaseException) -> bool:
    """Whether a library says that another process is gone."""
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in LOST)


def where() -> str:
    """This process in words."""
    return f"process {_rank()} of {os.environ['WORLD_SIZE']}, on {socket.gethostname()}"


def _failure(seconds: float = 0.0) -> PeerEnded | None:
    """What another process has said of its end, waiting so long for it."""
    until = time.monotonic() + seconds
    try:
        while not _store().check([f"{_Place.command}/ended"]):
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)
        said = json.loads(_store().get(f"{_Place.command}/ended"))
    except RuntimeError:
        return None
    return PeerEnded(f"process {said['rank']} on {said['host']}", said["message"], said["code"])


def _rank() -> int:
    return int(os.environ["RANK"])


@functools.cache
def _store() -> Any:
    """The launcher's store.

    Raises:
        RunFailed: if it cannot be reached.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=min(CONNECT, timeout())))))
    except (RuntimeError, OSError, ValueError) as error:
        raise RunFailed(
            f"the processes of this launch do not reach the first at {host}:{port} ({brief(str(error))})",
            hint="--main_process_ip and --main_process_port must name the first machine as the others see it",
        ) from error
    return PrefixStore("ilu", store)
