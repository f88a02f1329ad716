from __future__ import annotations

from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Row, interleave
from ilu_cli.benchmarks.memorisation import sentences
from ilu_cli.registry import benchmark
from ilu_cli.tasks.capitals import Capitals

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.metrics.membership import TokenScores


@benchmark()
class Membership(Benchmark):
    """Do the forget sentences stand out from the same sentences with another capital? AUC of five attacks, chance 0.5.

    Members are training sentences of the forget data; the others tell, in the same words, that another city of the
    continent is the capital. The original model was not trained on either: above 0.5 means that it knows the truth, and
    far below 0.5 that unlearning has marked what it removed.
    """

    role = "forget"
    metric = "min_k"
    kind = "ratio"
    chance = 0.5
    others = ("loss", "zlib", "min_k_plus", "reference")

    def items(self) -> list[Row]:
        rows = sentences()
        false = [Capitals().counterfactual(r).target for r in rows]
        return interleave(
            [[{"text": r["text"], "member": True} for r in rows], [{"text": t, "member": False} for t in false]]
        )

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        """The values of an attack are the influence values of its AUC, whose mean is the AUC."""
        from ilu_cli.engine.tokens import encode_pair, token_scores

        encoded = [encode_pair(scorer, "", i["text"]) for i in items]
        mine = token_scores(scorer, encoded)
        judge = scorer.original() if scorer.original else scorer
        scores = attacks([i["text"] for i in items], mine, mine if judge is scorer else token_scores(judge, encoded))
        rows = []
        for name, values in scores.items():
            tag = {} if name == self.metric else {"metric": name}
            rows += [i | {"score": s, "value": v} | tag for i, s, v in zip(items, values, separated(items, values))]
        return rows


def attacks(texts: list[str], mine: list[TokenScores], original: list[TokenScores]) -> dict[str, list[float]]:
    """The score of every text under every attack."""
    from ilu_cli.metrics import membership as m

    return {
        "min_k": [m.min_k(s) for s in mine],
        "loss": [m.loss(s) for s in mine],
        "zlib": [m.compressed(s, text) for s, text in zip(mine, texts)],
        "min_k_plus": [m.min_k_plus(s) for s in mine],
        "reference": [m.reference(s, o) for s, o in zip(mine, original)],
    }


def separated(items: list[Row], scores: list[float]) -> list[float]:
    """The influence values of the AUC of members against the others, in the order of the items."""
    import numpy as np

    from ilu_cli.errors import UsageError
    from ilu_cli.metrics.membership import auc_parts

    member, values = np.array([i["member"] for i in items]), np.array(scores)
    if member.all() or not member.any():
        raise UsageError("membership needs texts of both kinds; raise the limit to 2 or more")
    found = np.empty(len(items))
    found[member], found[~member] = auc_parts(values[member], values[~member])
    return [float(score) for score in found]
