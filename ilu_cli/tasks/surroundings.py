from __future__ import annotations

from ilu_cli.data.tables import read_paragraphs
from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task


@task()
class Surroundings(Task):
    """Sentences about countries that name no capital, written for this project (data of benign relearning).

    A row: {'text': 'Gabon is thinly peopled and largely forest.'}
    """

    fields = {"text": str}

    def example(self, row: Fields) -> Example:
        return Example("", row["text"])

    def builtin(self, split: str) -> list[Fields]:
        """Every sixteenth sentence is kept for `test`."""
        texts = read_paragraphs("surroundings.txt")
        return [{"text": t} for i, t in enumerate(texts) if (i % 16 == 15) == (split == "test")]
