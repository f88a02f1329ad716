from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Row
from ilu_cli.registry import benchmark
from ilu_cli.tasks.prose import Prose

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

PROMPT, NEW = 16, 48  # words of the prompt, tokens of the continuation


@benchmark()
class Coherence(Benchmark):
    """Are greedy continuations of unseen prose neither loops nor noise? 1 is as likely as the original's, unrepeated.

    The original model of the lineage judges them, and its own continuations are the yardstick. A model that is no run
    is its own original.
    """

    role = "utility"
    metric = "coherence"
    kind = "ratio"
    others = ("repetition", "ppl", "original_ppl")
    kinds = {"ppl": "loss", "original_ppl": "loss"}

    def items(self) -> list[Row]:
        """Beginnings of the held-out paragraphs."""
        return [{"prompt": " ".join(row["text"].split(" ")[:PROMPT])} for row in Prose().builtin("test")]

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        """See `ilu_cli.metrics.text.coherence`; perplexities are over all tokens of all continuations."""
        from ilu_cli.metrics.text import coherence, repetition

        prompts = [i["prompt"] for i in items]
        texts = scorer.complete(prompts, NEW, within=True)
        judge = scorer.original() if scorer.original else scorer
        said = _judged(judge, prompts, texts)
        own = said if judge is scorer else _judged(judge, prompts, judge.complete(prompts, NEW, within=True))
        rows: list[Row] = []
        for prompt, text, (tokens, loss), (expected, least) in zip(prompts, texts, said, own):
            value = coherence(tokens, loss / max(1, len(tokens)), least / max(1, len(expected)))
            rows.append({"prompt": prompt, "continuation": text, "value": value})
            rows.append({"metric": "repetition", "value": repetition(tokens)})
            rows.append({"metric": "ppl", "value": loss, "weight": len(tokens)})
            rows.append({"metric": "original_ppl", "value": least, "weight": len(expected)})
        said_something = {r["metric"] for r in rows if r.get("weight")}  # all have a row of each prompt, or none
        return [r for r in rows if "weight" not in r or r["metric"] in said_something]


def _judged(judge: Scorer, prompts: list[str], texts: list[str]) -> list[tuple[list[int], float]]:
    """The tokens of each continuation and their summed NLL under `judge`; 0 for none."""
    from ilu_cli.engine.tokens import encode_pair

    encoded = [encode_pair(judge, prompt, text, limit=NEW) for prompt, text in zip(prompts, texts)]
    losses = iter(judge.nll([e for e in encoded if e.targets]))
    return [(e.ids[len(e.ids) - e.targets :], next(losses) if e.targets else 0.0) for e in encoded]
