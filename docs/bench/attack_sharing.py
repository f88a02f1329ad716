"""What attacks in one process share: `python docs/bench/attack_sharing.py`. The real model's tokenizer, no weights.

Encodes and lays out the built-in benchmarks as a first attack does, and again as every later point and attack does; and
counts the runs of the shipped searches with their reference lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ilu_cli.engine import layout
from ilu_cli.engine.accel import backend
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Scorer
from ilu_cli.models.load import empty_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.expand import load_suite
from ilu_cli.workflows.evaluate import Evaluation, texts_of

NAMES = ["capitals", "elements"]


def seconds(work: Callable[[], Any]) -> float:
    """The time that it takes, once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print both tables."""
    subject = find_model("smollm2-135m")
    model, tokenizer = empty_model(subject.folder), load_tokenizer(subject.folder)
    spec = EvalSpec.model_validate({"benchmarks": NAMES})
    evaluations = [seconds(lambda: Evaluation(spec, Reporter())) for _ in range(2)]
    items = [i for found in Evaluation(spec, Reporter()).items.values() for i in found]
    print(f"{'':12}{'first':>10}{'again':>10}   of {len(items)} questions")
    print(f"{'benchmarks':12}{evaluations[0]:>9.3f}s{evaluations[1]:>9.3f}s   built by lm-eval, for each attack")
    encode, rows = [], []
    for _ in range(2):
        known = texts_of(subject, model)
        scorer = Scorer(model, parts_of(model), tokenizer, backend(), known=known)
        requests: list[Any] = []
        encode.append(
            seconds(
                lambda s=scorer, r=requests: r.extend(s.pair(i["question"], c) for i in items for c in i["choices"])
            )
        )
        rows.append(seconds(lambda s=scorer, r=requests: list(s.layout.rows(r))))
    print(f"{'texts':12}{encode[0]:>9.3f}s{encode[1]:>9.3f}s   {len(requests)} pairs")
    print(f"{'rows':12}{rows[0]:>9.3f}s{rows[1]:>9.3f}s   {layout._kept.cache_info().hits} of 2 layouts found")
    _, variants = load_suite("red")
    trials = [v.search.trials for v in variants if v.search]
    print(f"suite red: {sum(trials)} trials; on the original {len(trials)} runs instead of {sum(trials)}")


if __name__ == "__main__":
    main()
