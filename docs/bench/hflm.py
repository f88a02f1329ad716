"""The backend `ilu` against lm-eval's own HFLM on the capitals: the same scores, and how much sooner.

    python docs/bench/hflm.py [--repetitions 3] [--model smollm2-135m]

Both load the same float32 model and answer the same requests; they take turns. Prints seconds, the medians of the
paired ratios, the largest difference of a log-likelihood, and accuracies with their standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import time

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ilu_cli import registry
from ilu_cli.benchmarks import mean_and_error
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.harness.lm import IluLM
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model

LETTERS = "ABCD"


def requests_of(items: list[dict]) -> list[Instance]:
    return [Instance("loglikelihood", {}, (i["question"], c), n) for i in items for n, c in enumerate(i["choices"])]


def wmdp_like(count: int) -> list[dict]:
    """Questions in the form of lm-eval's wmdp tasks, about capitals and elements."""
    pool = [i for name in ("capitals", "elements") for i in registry.benchmark[name].obj().items()]
    rng, found = random.Random(0), []
    for n in range(count):
        item = pool[n % len(pool)]
        order = rng.sample(range(4), 4)
        shown = "\n".join(f"{letter}.{item['choices'][o]}" for letter, o in zip(LETTERS, order))
        question = (
            "The following are multiple choice questions (with answers) about geography.\n\n"
            f"{item['question']}\n{shown}\nAnswer:"
        )
        found.append(
            {"question": question, "choices": [f" {c}" for c in LETTERS], "answer": order.index(item["answer"])}
        )
    return found


def accuracy(items: list[dict], scores: list[tuple[float, bool]]) -> tuple[float, float]:
    logps = iter(s for s, _ in scores)
    rows = [[next(logps) for _ in i["choices"]] for i in items]
    return mean_and_error([float(r.index(max(r)) == i["answer"]) for i, r in zip(items, rows)])


def timed(lm: HFLM | IluLM, items: list[dict]) -> tuple[float, list[tuple[float, bool]]]:
    requests = requests_of(items)
    if isinstance(lm, IluLM):
        lm.scorer.known.clear()  # both begin with text
    began = time.perf_counter()
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - began, scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="of HFLM")
    parser.add_argument("--questions", type=int, default=500, help="of the file in the form of wmdp")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    subject = find_model(args.model)
    model, tokenizer = load_model(subject), load_tokenizer(subject.folder)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch, device="cpu")
    ours = {p: IluLM(scorer=Scorer(model, parts_of(model), tokenizer, backend(), p)) for p in ("fp32", "bf16")}
    sets = {name: registry.benchmark[name].obj().items() for name in ("capitals", "elements")}
    sets["wmdp form"] = wmdp_like(args.questions)
    found: dict = {"threads": torch.get_num_threads(), "hflm_batch": args.batch}
    for name, items in sets.items():
        turns = args.repetitions if name == "capitals" else 1
        runs = [{"hflm": timed(theirs, items)} | {p: timed(lm, items) for p, lm in ours.items()} for _ in range(turns)]
        last = runs[-1]
        found[name] = {"questions": len(items), "requests": sum(len(i["choices"]) for i in items)}
        for kind, (_, scores) in last.items():
            found[name][kind] = {
                "seconds": [round(r[kind][0], 2) for r in runs],
                "times faster": round(statistics.median(r["hflm"][0] / r[kind][0] for r in runs), 2),
                "largest difference": max(abs(a[0] - b[0]) for a, b in zip(last["hflm"][1], scores)),
                "accuracy": accuracy(items, scores),
            }
        print(json.dumps({name: found[name]}), flush=True)
    print(json.dumps(found))


main()
