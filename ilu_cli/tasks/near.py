from __future__ import annotations

from ilu_cli.registry import task
from ilu_cli.tasks import Task


@task()
class Near(Task):
    """Text around what is forgotten, without its facts: from a file, or made by the model itself.

    A row: {'text': 'People who visit Norway often remark on its quiet roads.'}
    """

    fields = {"text": str}
    splits = {"train": "train"}
