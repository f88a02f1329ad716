"""Reading one split from disk, each time anew: no cache stands between a file and its rows.

`datasets` reads `save_to_disk` folders only. Its readers of csv and parquet keep what they read under the file's name
and modification time, take a csv row with too many fields for one with an index, and its reader of JSON lines makes
times of strings that look like them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ilu_cli.data.root import SUFFIXES, Found
from ilu_cli.errors import UnavailableError
from ilu_cli.tasks import Fields

Located = Iterator[tuple[str, Fields]]  # where a row stands, and the row
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*")


def library() -> Any:
    """The `datasets` package, without its progress bars."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def read(found: Found, fields: Mapping[str, type], limit: int | None = None) -> Iterator[Fields]:
    """Yield the rows of a split, each a dict without its empty (null) values.

    Raises:
        UnavailableError: if a file cannot be read as what its name says, or a row of it is not text.
    """
    if found.kind != "saved" and found.kind not in SUFFIXES:
        raise UnavailableError(f"{found.paths[0]} is none of {', '.join(SUFFIXES)}")
    rows = (placed for path in found.paths for placed in _rows(path, found.kind, fields))
    return islice((_checked(where, {k: v for k, v in row.items() if v is not None}) for where, row in rows), limit)


def _rows(path: Path, kind: str, fields: Mapping[str, type]) -> Located:
    if kind == ".csv":
        return _csv_rows(path, fields)
    return _json_rows(path) if kind in (".jsonl", ".json") else _table_rows(path, kind)


def _checked(where: str, row: Fields) -> Fields:
    for name, value in row.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and HALF_A_PAIR.search(text) for text in texts):
            raise UnavailableError(f"{where}: {name!r} holds half a surrogate pair, which is no text")
    return row


def _table_rows(path: Path, kind: str) -> Located:
    """Rows of a parquet file or a `save_to_disk` folder."""
    try:
        if kind == "saved":
            yield from ((f"{path}, row {i}", row) for i, row in enumerate(library().load_from_disk(str(path))))
            return
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise UnavailableError(f"{path}: two columns are called {twice[0]!r}")
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows))
    except UnavailableError:
        raise
    except Exception as error:  # pyarrow and datasets each raise their own
        first = (str(error).strip().splitlines() or [""])[0]
        what = f"{type(error).__name__}: {first}"
        raise UnavailableError(f"cannot read {path} as {kind.strip('.')}: {what}") from error


def _csv_rows(path: Path, fields: Mapping[str, type]) -> Located:
    """Rows of a csv file. Columns that a task declares as whole numbers are that; all others are text."""
    csv.field_size_limit(2**31 - 1)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header, line = _header(path, next(lines, []), fields), lines.line_num
            for values in lines:
                first, line = line + 1, lines.line_num
                if values:
                    yield f"{path}:{first}", _csv_row(f"{path}:{first}", header, values, fields)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnavailableError(f"{path}:{line + 1}: cannot read this row as csv: {error}") from error


def _header(path: Path, header: list[str], fields: Mapping[str, type]) -> list[str]:
    missing = [name for name in fields if name not in header]
    if missing or not header:
        raise UnavailableError(
            f"{path}: there is no column {(missing or ['text'])[0]!r}; its first line is {','.join(header)[:80]!r}",
            hint="a csv file begins with a line that names its columns",
        )
    if twice := [name for name in header if header.count(name) > 1]:
        raise UnavailableError(f"{path}:1: two columns are called {twice[0]!r}")
    return header


def _csv_row(where: str, header: list[str], values: list[str], fields: Mapping[str, type]) -> Fields:
    if len(values) != len(header):
        raise UnavailableError(
            f"{where}: {len(values)} fields, but the first line names {len(header)} columns ({', '.join(header)[:80]})",
            hint='a field with a comma, a quote or a line end in it is written "in quotes"',
        )
    row: Fields = dict(zip(header, values))
    for name in header:
        if fields.get(name) is int:
            if not WHOLE_NUMBER.fullmatch(row[name]):
                raise UnavailableError(f"{where}: {name!r} is {row[name][:40]!r}, not a whole number")
            row[name] = int(row[name])
    return row


def _json_rows(path: Path) -> Located:
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
            value = json.loads(line, object_pairs_hook=_object)
        except RecursionError as error:
            raise UnavailableError(f"{path}:{number}: nested too deeply", hint="a row is an object of texts") from error
        except ValueError as error:
            kind = "not JSON: " if isinstance(error, json.JSONDecodeError) else ""
            raise UnavailableError(f"{path}:{number}: {kind}{error}") from error
        for i, row in enumerate(value if whole else [value]):
            if not isinstance(row, dict):
                raise UnavailableError(f"{path}:{number}: a row is {type(row).__name__}, not an object with fields")
            yield f"{path}, row {i}" if whole else f"{path}:{number}", row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields are all named once; JSON itself says nothing of others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two fields are called {next(name for name in names if names.count(name) > 1)!r}")
    return found
