"""Manifests that were edited: the command that names the run refuses it, and the lists of all runs go on without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import ATTACK

from malformed.judge import Input

ODD: dict[str, list[Any]] = {
    "id": ["", 5, None, [], "x[/red]\x1b[31my", "../x", "a/b", "\ud800"],
    "command": [5, None, [], {}],
    "status": [5, None, []],
    "created": [5, "yesterday", "", None, "2024-13-45T00:00:00+00:00", "2024-01-01", [], {}],
    "finished": [5, "never", []],
    "format": [0, 2, "1", None, [], {}],
    "parents": [None, [{}], [5], "u", {}, [None], [{"id": 5}], [[]]],
    "base": [None, 5, [], "x"],
    "data": [None, [{}], [5], "x", {}],
    "inputs": [None, [5], {}, "x"],
    "weights": [None, 5, [], {"a": 5}, {"a": None}],
    "beside": [None, 5, [], {"a": []}],
    "points": [{"x": {}}, None, 5, {"1": 5}, []],
    "versions": [None, 5, [], {"torch": 5}],
    "result": [None, 5, [], "x", {"points": [5]}, {"points": 5}, {"points": [{}]}, {"fq": [{}]}],
    "seed": ["a", None, [], 1.5, True],
    "world_size": ["a", None, []],
    "frobnicate": [1],
}
TEXTS: dict[str, bytes] = {
    "empty": b"", "no JSON": b"{", "list": b"[]", "null": b"null", "number": b"5", "text": b'"x"', "no UTF-8": b"\xff\xfe",
    "NUL": b"\0" * 100, "deep": b"[" * 100_000, "no keys": b"{}", "only a format": b'{"format": 1}', "5,000 digits": b"9" * 5000,
}  # fmt: skip


def _edit(change: Callable[[dict[str, Any], Path], Any]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        path = place / "runs/a/manifest.json"
        found = json.loads(path.read_text())
        found.pop("sha256")
        change(found, place)
        path.write_text(json.dumps(found))

    return make


def _put(key: str, value: Any) -> Callable[[Path], None]:
    return _edit(lambda found, _: found.update({key: value}))


def _itself(found: dict[str, Any], place: Path) -> None:
    found["parents"][0] |= {"id": "a", "path": str(place / "runs/a")}


def inputs() -> Iterator[Input]:
    uses = (
        ["eval", "runs/a", "--limit", "4"],
        ["attack", "runs/a", *ATTACK],
        ["runs", "show", "a"],
        ["taskvec", "runs/a"],
    )
    lists = (["runs"], ["runs", "tree"])
    n = 0
    for key, values in ODD.items():
        for value in values:
            make, n = _put(key, value), n + 1
            yield Input(f"{key}={value!r}: use", uses[n % 4], codes=(3,), says="manifest.json", make=make)
            yield Input(f"{key}={value!r}: list", lists[n % 2], codes=(0,), says="a run is left out", make=make)
    for name, text in TEXTS.items():
        files: dict[str, str | bytes] = {"runs/a/manifest.json": text}
        n += 1
        yield Input(f"{name}: use", uses[n % 4], files, (3,), "manifest.json")
        yield Input(f"{name}: list", lists[n % 2], files, (0,), "a run is left out")
    for args in uses[:2]:
        yield Input(f"its own parent: {args[0]}", args, codes=(3,), says="circle", make=_edit(_itself))
    for args in lists:
        yield Input(f"its own parent: {args}", args, codes=(0,), says="circle", make=_edit(_itself))
