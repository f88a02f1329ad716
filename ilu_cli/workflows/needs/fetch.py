"""Mirroring on disk what a recipe needs from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ilu_cli.data.root import locate
from ilu_cli.models.mirror import keep_revision
from ilu_cli.workflows.needs.find import Need


def fetch(needs: list[Need], root: Path, note: Callable[[str], None]) -> list[tuple[Need, str]]:
    """Download what is not under `root` yet, into `root/<hub name>`. A download that was cut off goes on.

    Returns:
        What could not be had, each with the reason.
    """
    from huggingface_hub import snapshot_download

    failed, done = [], set[tuple[str, tuple[str, ...]]]()
    for need in needs:
        if need.state in ("here", "builtin"):
            continue
        key = (need.hub, tuple(need.patterns()))
        if not need.hub or key in done:
            failed += [(need, need.where)] if not need.hub else []
            continue
        note(f"downloading {need.hub}" + (f", {need.config}" if need.config else ""))
        folder = root / need.hub
        try:
            asked = {"revision": need.revision, "allow_patterns": list(key[1])}
            snapshot_download(need.hub, repo_type=need.kind, local_dir=folder, **asked)
            if need.kind == "model":
                keep_revision(folder, need.revision)
        except Exception as error:  # the hub client raises its own errors, httpx's and OSError
            failed.append((need, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))
            continue
        done.add(key)
        if need.kind == "dataset" and locate(folder, need.config, need.split) is None:
            failed.append((need, f"{need.hub} has no files of {need.config or 'default'}, {need.split}"))
    return failed
