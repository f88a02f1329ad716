from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ilu_cli.benchmarks import Benchmark, Row, interleave
from ilu_cli.benchmarks.membership import separated
from ilu_cli.registry import benchmark

if TYPE_CHECKING:
    from ilu_cli.data.sources import Dataset
    from ilu_cli.engine.scoring import Scorer

VERBATIM, ANSWER = 128, 32  # new tokens
SHARE = 0.4  # of Min-K%
STOP = re.compile(r"\n\n|\nQuestion|Question:")
# AUC of the authors' retrained models (LLaMA-2 7B, ICLM 7B), which PrivLeak is relative to.
RETRAINED = {"news": 0.4772, "books": 0.5393}


def _define(corpus: str) -> None:
    @benchmark(name=f"muse-{corpus}")
    class MUSE(Benchmark):
        __doc__ = f"""MUSE {corpus.title()}: VerbMem, KnowMem on forget and retain set, PrivLeak (arXiv 2407.06460).

        VerbMem: ROUGE-L F1 of the greedy continuation of 128 tokens with the text's own. KnowMem: ROUGE-L F1 of the
        answer of up to 32 tokens after the examples of the dataset and `Answer: `, with the space, as in the authors'
        code. PrivLeak, in percent: AUC / AUC of a retrained
        model − 1, with Min-K% 40 and unseen texts counted positive, as in the authors' code: −100 where the forget
        texts are all known for members, above 0 where unlearning made them stand out. Texts are cut to the context.
        """
        role = "forget"
        metric = "verbmem"
        retains = True
        asks = tuple(f"muse-{corpus}-{part}" for part in ("raw", "train", "scal", "sust"))
        kind = "ratio"
        reads = tuple(
            (f"muse-{corpus}-{part}", split)
            for part, splits in {
                "verbmem": ("forget",),
                "knowmem": ("forget_qa_icl", "forget_qa", "retain_qa_icl", "retain_qa"),
                "privleak": ("holdout", "forget"),
            }.items()
            for split in splits
        )
        others = ("knowmem", "knowmem_retain", "privleak")

        def items(self) -> list[Row]:
            def load(part: str, split: str) -> Dataset:
                from ilu_cli.data.sources import load_dataset
                from ilu_cli.recipe.refs import DataRef

                data = load_dataset(DataRef(name=f"muse-{corpus}-{part}", source="hub"), split)
                self.source = data.source
                return data

            parts = [[{"part": "verbmem", **r} for r in load("verbmem", "forget").rows]]
            for part, split in (("knowmem", "forget_qa"), ("knowmem_retain", "retain_qa")):
                shown = load("knowmem", f"{split}_icl").examples()
                prefix = "".join(f"{e.prompt}{e.target}\n\n" for e in shown)
                data = load("knowmem", split)
                pairs = zip(data.examples(), data.rows)
                parts.append([{"part": part, "prompt": f"{prefix}{e.prompt} ", "gt": r["answer"]} for e, r in pairs])
            for split in ("holdout", "forget"):
                texts = [r["text"] for r in load("privleak", split).rows]
                parts.append([{"part": "privleak", "text": t, "member": split == "holdout"} for t in texts])
            return interleave(parts)

        def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
            def of(*names: str) -> list[Row]:
                return [i for i in items if i["part"] in names]

            return [
                *_continued(scorer, of("verbmem"), VERBATIM, verbatim=True),
                *_continued(scorer, of("knowmem", "knowmem_retain"), ANSWER, verbatim=False),
                *_leaks(scorer, of("privleak"), RETRAINED[corpus]),
            ]


def _continued(scorer: Scorer, items: list[Row], new: int, *, verbatim: bool) -> list[Row]:
    """ROUGE-L of the continuations, VerbMem's with as many tokens of the text, KnowMem's up to the next question."""
    from ilu_cli.metrics.text import rouge_l

    rows = []
    for item, said in zip(items, scorer.complete([i["prompt"] for i in items], new)):
        wanted = item["gt"]
        if verbatim:
            wanted = scorer.tokenizer.decode(scorer.tokenizer(wanted)["input_ids"][:new], skip_special_tokens=True)
        else:
            said = STOP.split(said)[0]
        tag = {} if verbatim else {"metric": item["part"]}
        rows.append({"prompt": item["prompt"], "gt": wanted, "said": said, "value": rouge_l(wanted, said)} | tag)
    return rows


def _leaks(scorer: Scorer, items: list[Row], retrained: float) -> list[Row]:
    """The influence values of the AUC, each as a percentage of the retrained model's AUC, less 100."""
    from ilu_cli.engine.tokens import encode_pair, token_scores
    from ilu_cli.metrics.membership import min_k

    scores = [min_k(s, SHARE) for s in token_scores(scorer, [encode_pair(scorer, "", i["text"]) for i in items])]
    values = separated(items, scores)
    kinds = ["holdout" if i["member"] else "forget" for i in items]
    return [
        {"metric": "privleak", "split": kind, "score": s, "value": (v / retrained - 1) * 100}
        for kind, s, v in zip(kinds, scores, values)
    ]


for _corpus in RETRAINED:
    _define(_corpus)
