from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Row
from ilu_cli.registry import benchmark
from ilu_cli.tasks.prose import Prose

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer


@benchmark()
class ProsePerplexity(Benchmark):
    """Perplexity per token of held-out general prose (utility benchmark of the quickstart)."""

    role = "utility"
    metric = "ppl"
    higher = "reads worse"

    def items(self) -> list[Row]:
        return [{"text": row["text"]} for row in Prose().builtin("test")]

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        from ilu_cli.data.encode import Encoded

        encoded = [Encoded(scorer.tokenizer(i["text"])["input_ids"][: scorer.context_length], 1) for i in items]
        values = scorer.nll(encoded)
        return [{"text": i["text"], "value": v, "weight": e.targets} for i, v, e in zip(items, values, encoded)]

    def summarise(self, rows: list[Row]) -> tuple[float, float]:
        """exp(ΣNLL / Σtokens); the error of this ratio over paragraphs by the delta method."""
        tokens = sum(r["weight"] for r in rows)
        loss = sum(r["value"] for r in rows) / tokens
        ppl, n = math.exp(loss), len(rows)
        if n < 2:
            return ppl, math.nan
        spread = sum((r["value"] - loss * r["weight"]) ** 2 for r in rows) * n / (n - 1)
        return ppl, ppl * math.sqrt(spread) / tokens
