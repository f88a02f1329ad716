"""Reading one split from disk. `datasets` reads parquet, csv and `save_to_disk` folders.

JSON lines are read here, since its reader takes rows that are no objects, makes times of strings that look like them,
and does not say which line is wrong.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ilu_cli.data.root import SUFFIXES, Found
from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import cache_dir

Row = dict[str, Any]


def library() -> Any:
    """The `datasets` package, without its progress bars."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def read(found: Found, fields: Mapping[str, type], limit: int | None = None) -> Iterator[Row]:
    """Yield the rows of a split, each a dict without its empty (null) values.

    Raises:
        UnavailableError: if a file cannot be read as what its name says.
    """
    if found.kind in (".jsonl", ".json"):
        rows: Iterator[Row] = (row for path in found.paths for row in _json_rows(path))
    elif found.kind in SUFFIXES or found.kind == "saved":
        rows = _library_rows(found, fields)
    else:
        raise UnavailableError(f"{found.paths[0]} is none of {', '.join(SUFFIXES)}")
    return islice(({k: v for k, v in row.items() if v is not None} for row in rows), limit)


def _library_rows(found: Found, fields: Mapping[str, type]) -> Iterator[Row]:
    datasets, files = library(), [str(p) for p in found.paths]
    try:
        if found.kind == "saved":
            table = datasets.load_from_disk(files[0])
        elif found.kind == ".parquet":
            table = datasets.Dataset.from_parquet(files, cache_dir=str(cache_dir() / "datasets"))
        else:
            extra = {"features": _csv_features(found.paths[0], fields), "keep_default_na": False}
            table = datasets.Dataset.from_csv(
                files, cache_dir=str(cache_dir() / "datasets"), encoding="utf-8-sig", **extra
            )
    except UnavailableError:
        raise
    except Exception as error:  # pyarrow, pandas and datasets each raise their own
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines() or [""]
        what = f"{type(cause).__name__}: {lines[0]}"
        raise UnavailableError(f"cannot read {found.paths[0]} as {found.kind.strip('.')}: {what}") from error
    return iter(table)


def _csv_features(path: Path, fields: Mapping[str, type]) -> Any:
    """Columns that a task declares as whole numbers are that; all others are text, even if they look like numbers."""
    datasets = library()
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            header = next(csv.reader(f), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnavailableError(f"cannot read {path}: {error}") from error
    missing = [name for name in fields if name not in header]
    if missing or not header:
        raise UnavailableError(
            f"{path}: there is no column {(missing or ['text'])[0]!r}; its first line is {','.join(header)[:80]!r}",
            hint="a csv file begins with a line that names its columns",
        )
    return datasets.Features({n: datasets.Value("int64" if fields.get(n) is int else "string") for n in header})


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of JSON lines, or of one JSON list. A byte-order mark and any line ends are fine."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(f"cannot read {path}: {error}") from error
    whole = path.suffix == ".json" and text.lstrip().startswith("[")
    for number, line in enumerate([text] if whole else text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UnavailableError(f"{path}:{number}: not JSON: {error}") from error
        for row in value if whole else [value]:
            if not isinstance(row, dict):
                raise UnavailableError(f"{path}:{number}: a row is {type(row).__name__}, not an object with fields")
            yield row
