from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Number, Row, by_metric, number, perplexity
from ilu_cli.registry import benchmark
from ilu_cli.tasks.prose import Prose

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

PROMPT, NEW = 16, 48  # words of the prompt, tokens of the continuation


@benchmark()
class Coherence(Benchmark):
    """Are greedy continuations of unseen prose neither loops nor noise? 1 is as likely as a person's text, unrepeated.

    The continuation is judged by the original model of the lineage, which is itself for a model that is no run.
    """

    role = "utility"
    metric = "coherence"
    others = ("repetition", "ppl", "written_ppl")

    def items(self) -> list[Row]:
        """Beginnings of the held-out paragraphs, and how their writer went on."""
        found = []
        for row in Prose().builtin("test"):
            words = row["text"].split(" ")
            found.append({"prompt": " ".join(words[:PROMPT]), "written": " " + " ".join(words[PROMPT:])})
        return found

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        """See `ilu_cli.metrics.text.coherence`; perplexities are over all tokens of all continuations."""
        from ilu_cli.engine.tokens import encode_pair
        from ilu_cli.metrics.text import coherence, repetition

        texts = scorer.complete([i["prompt"] for i in items], NEW)
        judge = scorer.original() if scorer.original else scorer
        said = [encode_pair(judge, i["prompt"], text, limit=NEW) for i, text in zip(items, texts)]
        wrote = [encode_pair(judge, i["prompt"], i["written"], limit=NEW) for i in items]
        losses, written = iter(judge.nll([e for e in said if e.targets])), judge.nll(wrote)
        rows: list[Row] = []
        for item, text, a, b, other in zip(items, texts, said, wrote, written):
            tokens, loss = a.ids[len(a.ids) - a.targets :], next(losses) if a.targets else 0.0
            value = coherence(tokens, loss / max(1, len(tokens)), other / b.targets)
            rows.append({"prompt": item["prompt"], "continuation": text, "value": value})
            rows.append({"metric": "repetition", "value": repetition(tokens)})
            rows.append({"metric": "written_ppl", "value": other, "weight": b.targets})
            if tokens:
                rows.append({"metric": "ppl", "value": loss, "weight": len(tokens)})
        return rows

    def also(self, rows: list[Row]) -> dict[str, Number]:
        groups = by_metric(rows)
        ppl = {name: number(*perplexity(groups[name])) for name in ("ppl", "written_ppl") if name in groups}
        return super().also([r for r in rows if "ppl" not in r.get("metric", "")]) | ppl
