from __future__ import annotations

from typing import Any

from ilu_cli.harness.task import HarnessTask, as_test_split
from ilu_cli.registry import benchmark
from ilu_cli.tasks.prose import Prose


@benchmark()
class ProsePerplexity(HarnessTask):
    """Perplexity per word of held-out general prose (utility benchmark of the quickstart)."""


def dataset(**_: object) -> dict[str, Any]:
    """The paragraphs, as prose.yaml asks for them."""
    return as_test_split([{"text": row["text"]} for row in Prose().builtin("test")])
