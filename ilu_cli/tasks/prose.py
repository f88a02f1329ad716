from __future__ import annotations

from ilu_cli.data.tables import read_paragraphs
from ilu_cli.registry import task
from ilu_cli.tasks import Fields, Task


@task()
class Prose(Task):
    """General English prose, written for this project (retain data of the quickstart).

    A row: {'text': 'The piano tuner came in the morning with a bag of felt and a fork. He played one note for
    a long time. After that he played the same note again, an octave higher, and shook his head slowly, the
    way a doctor does who has known the family for years.'}
    """

    fields = {"text": str}

    def builtin(self, split: str) -> list[Fields]:
        name = {"train": "prose_retain.txt", "test": "prose_heldout.txt"}[split]
        return [{"text": paragraph} for paragraph in read_paragraphs(name)]
