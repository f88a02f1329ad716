"""Where rows come from: the built-in generator, a file, or the hub. Every load says which, with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.recipe.specs import DataRef
from ilu_cli.tasks import Example, Row, Task


@dataclass(frozen=True)
class Dataset:
    """Rows of one split, their task, and where they came from."""

    ref: DataRef
    split: str
    task: Task
    rows: list[Row]

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def examples(self) -> list[Example]:
        """Prompt and target of every row."""
        return [self.task.example(row) for row in self.rows]

    def chosen(self, kind: str) -> list[Example]:
        """For every row what should be said instead: its `refusal` or `counterfactual`.

        Raises:
            UsageError: if the task has none.
        """
        return [getattr(self.task, kind)(row) for row in self.rows]

    def record(self, role: str) -> dict[str, Any]:
        """How a manifest names this dataset."""
        return {
            "role": role,
            "name": self.ref.name,
            "source": self.ref.source,
            "split": self.split,
            "rows": len(self.rows),
            "fingerprint": self.fingerprint,
        }


class JsonLines(Task):
    """A user's file: rows with `text`, or with `prompt` and `response`, and perhaps a `counterfactual` response."""

    def example(self, row: Row) -> Example:
        if "text" in row:
            return Example("", row["text"])
        response = row["response"]
        return Example(row["prompt"], response if response[:1].isspace() else f" {response}")

    def counterfactual(self, row: Row) -> Example:
        if not isinstance(row.get("counterfactual"), str):
            raise UsageError("every row of the forget data needs a string `counterfactual`")
        text = row["counterfactual"]
        return Example(row.get("prompt", ""), text if text[:1].isspace() or "text" in row else f" {text}")

    def correct(self, row: Row, completion: str) -> bool:
        return completion.strip() == row["response"].strip()


def load_dataset(ref: DataRef, split: str) -> Dataset:
    """Load and check the rows of one split (`train` or `test`).

    Raises:
        UnavailableError: if the dataset is missing, empty, or has other fields than its task declares.
    """
    if ref.source == "path":
        task: Task = JsonLines()
        rows = _read_jsonl(Path(ref.name))
    else:
        task = registry.task[ref.name].obj()
        rows = task.builtin(split) if ref.source == "builtin" else _from_hub(task, split)
        _check_fields(ref.name, task, rows)
    rows = rows[: ref.limit]
    if not rows:
        raise UnavailableError(f"the dataset {ref.name!r} ({ref.source}, {split}) is empty")
    return Dataset(ref, split, task, rows)


def _check_fields(name: str, task: Task, rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        for field, kind in task.fields.items():
            if field not in row:
                raise UnavailableError(f"{name}, row {i}: no field {field!r}; it has {', '.join(row)}")
            if not isinstance(row[field], kind):
                found = type(row[field]).__name__
                raise UnavailableError(f"{name}, row {i}: {field!r} is {found}, not {kind.__name__}")


def _read_jsonl(path: Path) -> list[Row]:
    if not path.is_file():
        raise UnavailableError(f"there is no dataset file {path}")
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UnavailableError(f"{path}:{number}: not JSON: {error}") from error
        fields = ("text",) if isinstance(row, dict) and "text" in row else ("prompt", "response")
        if not isinstance(row, dict) or not all(isinstance(row.get(f), str) for f in fields):
            raise UnavailableError(f"{path}:{number}: needs a string `text`, or strings `prompt` and `response`")
        if not row[fields[-1]].strip():
            raise UnavailableError(f"{path}:{number}: {fields[-1]!r} is empty")
        rows.append(row)
    return rows


def _from_hub(task: Task, split: str) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(task.hub, task.config, split=task.splits[split]).to_list()
    except Exception as error:  # datasets, the hub client and httpx each raise their own
        first = (str(error).splitlines() or [""])[0]
        raise UnavailableError(
            f"the dataset {task.hub!r} ({task.config or 'default'}, {task.splits[split]}) cannot be had from the hub: "
            f"{type(error).__name__}: {first}",
            hint="check the network and access rights; `source: builtin` uses the built-in stand-in",
        ) from error
