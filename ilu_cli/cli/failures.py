"""What the operating system and the libraries say, as messages with a place and a remedy."""

from __future__ import annotations

import errno
import sys

from ilu_cli.engine.peers import PeerLost, is_lost
from ilu_cli.errors import IluError, RunFailed, UnavailableError, UsageError, brief

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
SIGNS = ("No space left", "os error 28", "Disk quota", "File too large", "os error 27", "Errno 28")
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "unable to allocate",
          "can't start new thread", "failed to map segment", "could not create a primitive")  # fmt: skip
# torch's own writer says only that it could not write
TORCH = ("PytorchStreamWriter failed writing", "unexpected pos")


def as_known(error: BaseException) -> IluError:
    """Give an error a message; one of ours keeps its own, unless a full disk or memory stands behind it."""
    first = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    chain = _chain(error)
    texts = [str(e) for e in chain]
    if any(getattr(e, "errno", None) in FULL for e in chain) or _says(texts, (*SIGNS, *TORCH)):
        resumes = " and use --resume" if _command() in ("unlearn", "attack") else ""
        hint = f"free some space{resumes}; ILU_RUNS and ILU_CACHE choose other folders"
        return RunFailed(f"the disk is full, or a file may not grow further ({first})", hint=hint)
    if any(isinstance(e, MemoryError) for e in chain) or _says(texts, MEMORY, lower=True):
        return RunFailed(f"out of memory ({first})", hint=_less_memory())
    if isinstance(error, IluError):
        return error
    if (pydantic := sys.modules.get("pydantic")) and isinstance(error, pydantic.ValidationError):
        found = error.errors(include_url=False)[0]
        key = ".".join(map(str, found["loc"]))
        return UsageError(
            f"{error.title}: {key}: {found['msg']}, not {brief(found['input'])}", hint="choose less of it"
        )
    if isinstance(error, UnicodeError):
        return UsageError(f"a name or a text holds bytes that are no text ({first})", hint="write it in UTF-8")
    if isinstance(error, OSError):
        return _of_system(error, first)
    return _unexpected(first, chain)


def _unexpected(first: str, chain: list[BaseException]) -> IluError:
    if not any(map(is_lost, chain)):
        return RunFailed(f"unexpected {first}", hint="`ilu --debug …` shows where; please report it")
    resumes = "; --resume goes on from the last state kept" if _command() in ("unlearn", "attack") else ""
    return PeerLost(
        f"another process of this launch has ended or does not answer ({brief(first)})",
        hint=f"its own message, or the signal that ended it, says why{resumes}",
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it came from."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _says(texts: list[str], signs: tuple[str, ...], *, lower: bool = False) -> bool:
    return any(sign in (text.lower() if lower else text) for text in texts for sign in signs)


def _of_system(error: OSError, first: str) -> IluError:
    where = error.filename2 or error.filename
    place = f"{where}: {error.strerror}" if where and error.strerror else first
    if error.errno in DENIED:
        out = ", and --out the run's" if _command() in ("unlearn", "attack", "report", "reproduce") else ""
        hint = f"give yourself the right to read or write it; ILU_RUNS and ILU_CACHE choose other folders{out}"
        return UnavailableError(f"no access to {place}", hint=hint)
    if error.errno == errno.ENAMETOOLONG:
        return UnavailableError(f"the name is too long for this file system: {place}"[:400], hint="use a shorter name")
    if error.errno == errno.EIO:
        return UnavailableError(f"the disk does not answer: {place}", hint="check the disk, or restore from a copy")
    return UnavailableError(f"a file cannot be used: {place}", hint="check that it is there and that it can be read")


def _command() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _less_memory() -> str:
    """A remedy among the options that the command has."""
    smaller = {
        "unlearn": "--set train.accumulation=2 takes the batch in two parts; or a smaller --set forget.batch=2",
        "attack": "a smaller batch, as --set attack.batch=2, or shorter texts",
        "eval": "close other programs, or use a machine with more memory; --limit does not lower the peak",
    }
    return smaller.get(_command(), "close other programs, or use a machine with more memory")
