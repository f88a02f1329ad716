"""The list of a folder's files with their sizes and hashes (`files.json`), which hashes itself.

A finished run has one over everything that decides a result; a folder of results of a model that is no run has one too.
What a command reads it checks first; what it adds it lists, under a lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import read_json, sha256, write_json
from ilu_cli.runs.lock import briefly

NAME = "files.json"
LISTED = ("recipe.yaml", "metrics.jsonl", "README.md", "checkpoint", "points", "eval")
"""What is listed of a run. The manifest hashes itself, and what a tracker writes decides nothing."""


class FileEntry(TypedDict):
    """What the list says of a file."""

    size: int
    sha256: str


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its own hash as `sha256`."""
    value = json.loads(json.dumps(value, allow_nan=False))
    return {**value, "sha256": hashlib.sha256(json.dumps(value).encode()).hexdigest()}


def unseal(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """The object without its hash, which is compared; one that never had a hash is taken as it is.

    Raises:
        UnavailableError: if it is not what was written.
    """
    bare = {k: v for k, v in value.items() if k != "sha256"}
    if "sha256" in value and seal(bare)["sha256"] != value["sha256"]:
        raise UnavailableError(
            f"{path} is damaged: it was changed after it was written", hint="restore the file from a copy"
        )
    return bare


def entry(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def files_below(root: Path, parts: Iterable[str]) -> list[str]:
    """The files at or below `parts` of a folder, as posix paths. Hidden ones, which nobody reads, are left out."""
    found: set[Path] = set()
    for part in parts:
        at = root / part
        found |= {at} if at.is_file() else {p for p in at.rglob("*") if p.is_file()}
    names = (p.relative_to(root) for p in found)
    return sorted(p.as_posix() for p in names if not any(bit.startswith(".") for bit in p.parts) and p.name != NAME)


def read(root: Path) -> dict[str, FileEntry] | None:
    """The list of a folder; None if it has none.

    Raises:
        UnavailableError: if the list is damaged.
    """
    path = root / NAME
    if not path.exists():
        return None
    found = read_json(path)
    if "sha256" not in found or not isinstance(found.get("files"), dict):
        raise UnavailableError(f"{path} is damaged: it is no list of files", hint="restore the file from a copy")
    return dict(unseal(found, path)["files"])


def write(root: Path, files: dict[str, FileEntry]) -> None:
    """Write the list, atomically."""
    write_json(root / NAME, seal({"format": 1, "files": dict(sorted(files.items()))}))


def add(root: Path, *parts: str, new: bool = False) -> None:
    """List anew what lies at `parts`. A folder without a list gets one only if it is to be `new`."""
    with briefly(root):
        files = read(root)
        if files is None and not new:
            return
        kept = {name: e for name, e in (files or {}).items() if not _within(name, parts)}
        write(root, kept | {name: entry(root / name) for name in files_below(root, parts)})


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(part in ("", name) or name.startswith(f"{part}/") for part in parts)


def differences(root: Path, files: dict[str, FileEntry], parts: Iterable[str]) -> dict[str, str]:
    """What is not as it is listed at or below `parts`: by file, that it is missing, changed, or not the run's."""
    parts, found = list(parts), {}
    there = set(files_below(root, parts))
    for name, known in files.items():
        if not _within(name, parts):
            continue
        if name not in there:
            found[name] = "is missing"
        elif (root / name).stat().st_size != known["size"]:
            size = (root / name).stat().st_size
            found[name] = f"was changed or damaged: it has {size} bytes, the list says {known['size']}"
        elif (now := sha256(root / name)) != known["sha256"]:
            found[name] = f"was changed or damaged: its sha256 is {now[:12]}…, the list says {known['sha256'][:12]}…"
    return found | dict.fromkeys(sorted(there - files.keys()), "is not the run's: it was added to it")


def check(root: Path, what: str, *parts: str) -> bool:
    """Compare what lies at `parts` with the list; return whether there is a list.

    Raises:
        UnavailableError: at the first difference.
    """
    files = read(root)
    if files is None:
        return False
    for name, how in differences(root, files, parts).items():
        hint = "restore the file; or copy the folder and name the copy, which is a model of its own"
        if how.startswith("is not"):
            hint = "take the file away"
        elif name.startswith("eval/") or name.endswith(".rows.jsonl"):
            hint = "restore the file; `ilu eval` measures a model's own results again where their .json is gone"
        raise UnavailableError(f"{what}: {root / name} {how}", hint=hint)
    return True
