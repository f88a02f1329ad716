"""Mirrors of the hub's models under the data root, and which revision lies there."""

from __future__ import annotations

from pathlib import Path

from ilu_cli.data.root import data_root
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.paths import is_hub_name

NAME = ".revision"  # in the folder of a model that `ilu fetch` got: what was asked for


def in_mirror(name: str) -> Path | None:
    """The folder of a hub model under the data root, if it is there."""
    root = data_root()
    folder = root / name if root and is_hub_name(name) else None
    return folder if folder and any((folder / f).is_file() for f in ("config.json", "adapter_config.json")) else None


def keep_revision(folder: Path, revision: str | None) -> None:
    """Write down which revision was got; none, which is the newest, leaves nothing."""
    if revision is None:
        (folder / NAME).unlink(missing_ok=True)
    else:
        (folder / NAME).write_text(revision, encoding="utf-8")


def is_revision(folder: Path, revision: str | None) -> bool:
    """Whether a mirror is known to hold this revision; where none is asked for, any is right."""
    kept = folder / NAME
    return revision is None or (kept.is_file() and kept.read_text(encoding="utf-8").strip() == revision)


def check_revision(label: str, kind: str, folder: Path, revision: str | None, *, mirrored: bool) -> None:
    """Check that a model that a recipe wants in a revision is in that revision.

    Raises:
        UsageError: if it is none of the hub's.
        UnavailableError: if it is a mirror, which may hold another one.
    """
    if revision is None or kind == "hub" or (mirrored and is_revision(folder, revision)):
        return
    if mirrored:
        raise UnavailableError(
            f"model.revision: {folder} is not known to be {label} at {revision}",
            hint=f"`ilu fetch` gets that revision; or, if it is, write {revision} into {folder / NAME}",
        )
    raise UsageError(
        f"model.revision: {revision} is of a model on the hub, and {label} is a {kind}",
        hint="leave it out: --set model.revision=null",
    )
