"""One process at a time in a run folder, and who it is.

The lock is `filelock`'s: `flock` or Windows' own, which end with their process; where a file system has none, a marker
file. Beside it lies who holds it, for people, and for file systems whose locks do not reach other hosts.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from ilu_cli.errors import UsageError

LOCK, HOLDER = ".lock", ".holder.json"
TURN, MEASURES = ".turn.lock", ".turn"  # of a folder of results
LINE = 200  # characters of a command that are kept


@dataclass(frozen=True)
class Holder:
    """The process that works in a run folder. `born` tells it from a later one with the same pid."""

    host: str
    pid: int
    born: float
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (`{self.command}`, since {self.since[:19]} UTC)"

    @property
    def here(self) -> bool:
        """Whether the process that holds the run is one of this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether the process is there; of another host that cannot be known, and it is taken to be."""
        import psutil

        if not self.here:
            return True
        try:
            found = psutil.Process(self.pid)
            return bool(found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - self.born) < 2)
        except psutil.Error:
            return False


def _myself() -> Holder:
    import psutil

    line = " ".join(["ilu", *sys.argv[1:]])[:LINE]
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time(), line, since)


def _recorded(folder: Path, name: str = HOLDER) -> Holder | None:
    try:
        return Holder(**json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def holder(folder: Path, name: str = HOLDER) -> Holder | None:
    """The live process that works in a run folder; None if there is none."""
    found = _recorded(folder, name)
    return found if found is not None and found.alive else None


def refuse_held(folder: Path, what: str) -> None:
    """Refuse to touch a run that a process works in.

    Raises:
        UsageError: if one does.
    """
    if (found := holder(folder) or holder(folder / "eval", MEASURES)) is not None:
        raise _refused(folder, what, found)


def _refused(folder: Path, what: str, found: Holder | None) -> UsageError:
    if found is not None and not found.here:
        hint = f"if that process has ended, remove {folder / HOLDER} and try again"
    else:
        hint = "wait until it ends, or stop it with Ctrl-C; `ilu runs` shows what is running"
    return UsageError(f"{what} is held by {found or 'another process'}", hint=hint)


@contextmanager
def held(folder: Path, what: str) -> Iterator[str | None]:
    """Hold a run folder. Yields what there is to say: that a process which is gone has left it.

    Raises:
        UsageError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise _refused(folder, what, _recorded(folder)) from error
    try:
        before = _recorded(folder)
        if before is not None and not before.here:
            raise _refused(folder, what, before)
        (folder / HOLDER).write_text(json.dumps(asdict(_myself())), encoding="utf-8")
        try:
            yield f"{what} is taken over: {before} is gone" if before else None
        finally:
            (folder / HOLDER).unlink(missing_ok=True)
    finally:
        lock.release()


def let_go(folder: Path, gone: list[str]) -> None:
    """Forget who holds a run folder if it is one of these commands, which are known to have ended on whatever host."""
    if (found := _recorded(folder)) is not None and found.command in {line[:LINE] for line in gone}:
        (folder / HOLDER).unlink(missing_ok=True)


@contextmanager
def turn(folder: Path, what: str, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder of results; if another process does, wait for it, and say once for whom."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / TURN, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        note(f"{what}: waiting for {_recorded(folder, MEASURES) or 'another process'}")
        lock.acquire(timeout=-1)
    try:
        (folder / MEASURES).write_text(json.dumps(asdict(_myself())), encoding="utf-8")
        yield
    finally:
        (folder / MEASURES).unlink(missing_ok=True)
        lock.release()


@contextmanager
def briefly(folder: Path) -> Iterator[None]:
    """Wait for the right to change a folder's list of files."""
    from filelock import FileLock

    with FileLock(folder / ".files.lock", timeout=60):
        yield
