"""The run that `--resume` goes on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli import trust
from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.runs.store import Run, Store


def _begun(run: Run) -> bool:
    return run.status in ("stopped", "failed") and (run.path / "recipe.yaml").is_file()


def unfinished(store: Store, command: str, text: str | None) -> Run:
    """The run that `--resume` continues: the one named, or the latest that is not finished.

    Raises:
        UsageError: if the named run is finished or of another command.
        UnavailableError: if there is none.
    """
    from ilu_cli.runs.lock import refuse_held

    if text is None:
        what = f"unfinished {command} run, but for those at work,"
        found = store.latest(lambda r: r.manifest.command == command and _begun(r), what)
    else:
        found = store.get(text)
        refuse_held(found.path, f"run {found.id}")
    if found.manifest.command != command:
        raise UsageError(f"{found.id} is a run of `ilu {found.manifest.command}`")
    if found.complete:
        raise UsageError(f"{found.id} is finished; there is nothing to resume")
    if not (found.path / "recipe.yaml").is_file():
        raise UsageError(f"{found.id} stopped before it began", hint="start it again without --resume")
    trust.check_same(found.manifest.trust, f"run {found.id}")
    return found
