"""Text that a model made, in the cache: by what it was made from, and by its own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import cache_dir, read_json, write_json, write_text

COPY = "near.jsonl"  # in the folder of a run

Counts = dict[str, int]
"""How many texts were made, kept, and left out, by why."""


def content_of(texts: Sequence[str]) -> str:
    """sha256 of texts, in their order."""
    return hashlib.sha256(lines(texts).encode()).hexdigest()


def keep(key: str, texts: Sequence[str], counts: Counts) -> str:
    """Keep what was made from what `key` is a hash of; return the hash of its content."""
    made = content_of(texts)
    _folder().mkdir(parents=True, exist_ok=True)
    write_text(_file(made), lines(texts))
    write_json(_folder() / f"{key}.json", {"made": made, "counts": counts})
    return made


def known(key: str) -> tuple[str, Counts] | None:
    """The content's hash, and the counts, of what was made from this before; None if it is not here, or damaged."""
    try:
        found = read_json(_folder() / f"{key}.json")
        texts_of(found["made"])
        return found["made"], found["counts"]
    except (OSError, UnavailableError, ValueError, KeyError, TypeError):
        return None


def texts_of(made: str) -> list[str]:
    """The texts with this hash.

    Raises:
        UnavailableError: if they are not in the cache, or not what they were.
    """
    try:
        texts = [json.loads(line)["text"] for line in _file(made).read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, KeyError, TypeError):
        texts = []
    if content_of(texts) != made:
        raise UnavailableError(
            f"the text {made[:12]} that a model made is not in the cache",
            hint="its run has near text as near.jsonl: name that file, {name: near, path: FILE}",
        )
    return list(texts)


def restore(file: Path) -> None:
    """Put text that a run kept back into the cache, if it is not there."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    target = _file(hashlib.sha256(text.encode()).hexdigest())
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)


def _folder() -> Path:
    return cache_dir() / "made"


def _file(made: str) -> Path:
    return _folder() / f"{made}.jsonl"


def lines(texts: Sequence[str]) -> str:
    """As a file of JSON lines."""
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
