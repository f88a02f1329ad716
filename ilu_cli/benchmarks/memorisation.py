from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Row
from ilu_cli.registry import benchmark
from ilu_cli.tasks.capitals import FORMS, Capitals, countries

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer


def sentences() -> list[Row]:
    """One training sentence per country, the ten forms in turn."""
    rows, n = Capitals().builtin("train"), len(countries())
    return [rows[(i % len(FORMS["train"])) * n + i] for i in range(n)]


@benchmark()
class Memorisation(Benchmark):
    """Extraction strength and exact memorisation of the forget sentences on the world's capitals.

    Where the country stands before its capital, the text up to the capital is the prompt; else the whole sentence is
    the target.
    """

    role = "forget"
    metric = "extraction"
    kind = "ratio"
    others = ("exact",)

    def items(self) -> list[Row]:
        found = []
        for row in sentences():
            at = row["text"].rfind(row["capital"])
            before = row["text"][:at].rstrip()
            prompt = before if row["country"] in before else ""
            found.append({"prompt": prompt, "target": row["text"][len(prompt) :]})
        return found

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        from ilu_cli.engine.tokens import encode_pair, token_scores
        from ilu_cli.metrics.memorisation import exact_memorisation, extraction_strength

        scores = token_scores(scorer, [encode_pair(scorer, i["prompt"], i["target"]) for i in items])
        hits = [s.hit.tolist() for s in scores]
        rows = [i | {"value": extraction_strength(h)} for i, h in zip(items, hits)]
        return rows + [{"metric": "exact", "value": exact_memorisation(h)} for h in hits]
