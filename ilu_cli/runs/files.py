"""Hashes, atomic writes, and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs

from ilu_cli.errors import RunFailed


def cache_dir() -> Path:
    """`ILU_CACHE`, or the platform's cache folder: what is in it can be made again."""
    return Path(os.environ.get("ILU_CACHE") or platformdirs.user_cache_dir("ilu"))


def sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a half, even after a power cut."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def weight_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every weight file in a checkpoint folder."""
    return {p.name: sha256(p) for p in weight_files(folder)}


def combined(hashes: dict[str, str]) -> str:
    """One digest for a set of weight files."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to start what cannot be saved.

    Raises:
        RunFailed: if the disk has less than `needed` bytes free.
    """
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunFailed(
            f"the disk of {folder} has {free / 1e9:.2f} GB free; this run writes up to {needed / 1e9:.2f} GB",
            hint="free some space, or choose another folder with --out or ILU_RUNS",
        )
