from __future__ import annotations

from collections.abc import Mapping

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task

PARTS = tuple(f"forget_{n}" for n in range(1, 5))


# What each config of the two datasets holds: its splits, its fields, and what it is for.
CONFIGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "raw": (("forget", "retain1", "retain2", "holdout"), ("text",), "the texts as they are"),
    "train": (("forget", "retain1", "retain2"), ("text",), "the texts that the target model was trained on"),
    "verbmem": (("forget",), ("prompt", "gt"), "beginnings and continuations, for verbatim memorisation"),
    "knowmem": (
        ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"),
        ("question", "answer"),
        "questions on the texts, for knowledge memorisation",
    ),
    "privleak": (("forget", "retain", "holdout"), ("text",), "passages for membership inference"),
    "scal": (PARTS, ("text",), "forget sets of growing size (News only)"),
    "sust": (PARTS, ("text",), "forget sets that are asked for one after another (News only)"),
}


SIZES = {"News": {"raw": 14_881_285, "train": 15_207_155, "privleak": 1_485_975, "knowmem": 26_647, "scal": 19_240_874,
                  "sust": 7_721_364}, "Books": {"raw": 5_386_338, "train": 3_997_041, "privleak": 1_329_454,
                                                "knowmem": 21_229}}  # fmt: skip


def _define(corpus: str, part: str) -> None:
    names, columns, what = CONFIGS[part]

    @task(name=f"muse-{corpus.lower()}-{part}")
    class MUSE(Task):
        __doc__ = f"MUSE {corpus}, {part}: {what} (arXiv 2407.06460)."
        hub, config, download = f"muse-bench/MUSE-{corpus}", part, SIZES[corpus].get(part, 0)
        splits = {name: name for name in names}
        fields = dict.fromkeys(columns, str)

        def example(self, row: Fields) -> Example:
            if "text" in row:
                return Example("", row["text"])
            if "gt" in row:
                return Example(row["prompt"], row["gt"])
            return Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}")


for _corpus in ("News", "Books"):
    for _part in CONFIGS:
        if _part in ("scal", "sust") and _corpus == "Books":
            continue
        _define(_corpus, _part)
