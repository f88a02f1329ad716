from __future__ import annotations

from ilu_cli.data.tables import read_paragraphs
from ilu_cli.registry import task
from ilu_cli.tasks import Row, Task


@task()
class Prose(Task):
    """General English prose, written for this project (retain data of the quickstart)."""

    fields = {"text": str}

    def builtin(self, split: str) -> list[Row]:
        name = {"train": "prose_retain.txt", "test": "prose_heldout.txt"}[split]
        return [{"text": paragraph} for paragraph in read_paragraphs(name)]
