"""What ended a run before its end: said in its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ilu_cli import stopping
from ilu_cli.errors import IluError
from ilu_cli.runs.store import Run


@contextmanager
def ending(run: Run, main: bool) -> Iterator[None]:
    """Around the making of a run. What is raised is recorded as its status, `failed` or `stopped`, and `result.error`.

    Either can be continued with --resume; a process that is killed leaves `running`.
    """
    run.manifest.status = "running"
    run.manifest.result.pop("error", None)
    if main:
        run.save()
    try:
        yield
    except BaseException as error:
        if main and not run.complete and run.path.is_dir():
            by_hand = not isinstance(error, Exception) or getattr(error, "exit_code", None) == stopping.CODE
            run.manifest.status = "stopped" if by_hand else "failed"
            run.manifest.result["error"] = (
                str(error) if isinstance(error, IluError) else f"{type(error).__name__}: {error}"
            )
            with stopping.deferred(), suppress(OSError):  # of a full disk, which is what is raised then
                run.save()
        raise
