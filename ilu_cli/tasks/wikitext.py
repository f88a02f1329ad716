from __future__ import annotations

from ilu_cli.registry import task
from ilu_cli.tasks import Fields, Task

SHORTEST = 50  # characters; headings and blank lines are rows of their own


@task()
class WikiText(Task):
    """Wikipedia paragraphs, general retain text (WikiText-2, raw)."""

    hub, config = "Salesforce/wikitext", "wikitext-2-raw-v1"
    splits = {"train": "train", "validation": "validation", "test": "test"}
    fields = {"text": str}

    def keep(self, row: Fields) -> bool:
        return len(row["text"]) > SHORTEST
