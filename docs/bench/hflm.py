"""The backend `ilu` against lm-eval's own HFLM: the same scores, and how much sooner.

    python docs/bench/hflm.py [--repetitions 3] [--questions 500] [--sets capitals "wmdp form"]

Both answer the same requests in turns: float32 against float32, and our bf16 autocast against HFLM with the model in
bf16. Prints seconds, the medians of the paired ratios, the largest difference of a log-likelihood, and accuracies with
their standard error; and what the matrix products alone allow: the CPU time of both beside that of the least products,
at the rate that the layers' own shapes reach in this process.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import statistics
import time

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measure import tell

from ilu_cli import registry
from ilu_cli.benchmarks import mean_and_error
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import in_rows
from ilu_cli.harness.lm import IluLM
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.specs import DEFAULT_MODEL

LETTERS = "ABCD"
TOKENS = 1024  # of the products whose rate is measured


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


def timed(lm: HFLM | IluLM, items: list[dict]) -> tuple[float, float, list[tuple[float, bool]]]:
    """Seconds on the clock, seconds of CPU, scores."""
    requests = requests_of(items)
    if isinstance(lm, IluLM):
        lm.scorer.known.clear()  # both begin with text
    began, used = time.perf_counter(), time.process_time()
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - began, time.process_time() - used, scores


def least_seconds(items: list[dict], lm: IluLM) -> float:
    """CPU seconds of the matrix products that no exact way can leave out, at the rate of the layers' own shapes here.

    Each token that differs by what comes before it goes through the layers once, but of the last one through keys and
    values alone (counted as nothing), and the LM head reads each state that predicts once: 2 operations a weight.
    """
    requests, parts = [lm.scorer.pair(*r.args) for r in requests_of(items)], lm.scorer.parts
    read = {r.ids[:n] for r in requests for n in range(1, len(r.ids))}
    asked = {r.ids[:n] for r in requests for n in range(r.start, len(r.ids))}
    layers = [[m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)] for layer in parts.layers]
    sizes = [sum(w.numel() for w in weights) for weights in layers]
    flops = 2 * (sum(sizes[:-1]) * len(read) + parts.head.weight.numel() * len(asked))
    dtype = torch.bfloat16 if lm.scorer.precision == "bf16" else torch.float32
    pairs = [(torch.randn(TOKENS, w.shape[1]).to(dtype), w.detach().to(dtype)) for w in layers[0]]
    took = []
    for _ in range(9):
        began = time.process_time()
        for x, w in pairs:
            torch.nn.functional.linear(x, w)
        took.append(time.process_time() - began)
    return flops * statistics.median(took) / (2 * sizes[0] * TOKENS)


def counted(items: list[dict], lm: IluLM) -> str:
    """How many tokens both run: HFLM every different text whole, ours the rows of trees, and at least its prefixes."""
    pairs = [lm.scorer.pair(*r.args) for r in requests_of(items)]
    texts = {p.ids[:-1] for p in pairs}
    run = sum(map(len, in_rows(pairs, list(range(len(pairs))))))
    least = len({text[:n] for text in texts for n in range(1, len(text) + 1)})
    return (
        f"matrix products: HFLM reads {sum(map(len, texts)):,} tokens, ilu {run:,}, of which {least:,} differ by what "
        "comes before; and HFLM's LM head reads all"
    )


def compare(name: str, items: list[dict], theirs: HFLM, ours: IluLM, repetitions: int) -> None:
    """Both answer the same requests in turns, once unmeasured on a few; prints what came of it."""
    for lm in (theirs, ours):
        timed(lm, items[:16])
    runs, floors = [], []
    for _ in range(repetitions):
        runs.append((timed(theirs, items), timed(ours, items)))
        floors.append(least_seconds(items, ours))
    (_, _, a), (_, _, b) = runs[-1]
    theirs_cpu, ours_cpu = (statistics.median(pair[n][1] for pair in runs) for n in (0, 1))
    least = statistics.median(floors)
    tell(
        f"log-likelihood, {name}, {ours.scorer.precision}",
        [plain for (plain, *_), _ in runs],
        [mine for _, (mine, *_) in runs],
        requests=len(a),
        largest_difference=max(abs(x[0] - y[0]) for x, y in zip(a, b)),
        cpu_s={"hflm": theirs_cpu, "ilu": ours_cpu, "least products": least},
        limit=f"{counted(items, ours)}. By CPU time {theirs_cpu / ours_cpu:.2f}; with the least products and nothing "
        f"else {theirs_cpu / least:.2f}",
        accuracy={"hflm": accuracy(items, a), "ilu": accuracy(items, b)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="of HFLM")
    parser.add_argument("--questions", type=int, default=500, help="of the file in the form of wmdp")
    parser.add_argument("--sets", nargs="*", default=["capitals", "wmdp form"], help="also: elements")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    subject = find_model(args.model)
    model, tokenizer = load_model(subject), load_tokenizer(subject.folder)
    for precision, plain in (("fp32", model), ("bf16", copy.deepcopy(model).bfloat16())):
        theirs = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=args.batch, device="cpu")
        ours = IluLM(scorer=Scorer(model, parts_of(model), tokenizer, backend(), precision))
        for name in args.sets:
            items = wmdp_like(args.questions) if name == "wmdp form" else registry.benchmark[name].obj().items()
            compare(name, items, theirs, ours, args.repetitions)


if __name__ == "__main__":
    main()
