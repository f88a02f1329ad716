"""Training steps on a busy machine: one and several jobs at once, with threads that spin or sleep while they wait.

python docs/bench/busy.py [--jobs 2] [--threads 2] [--seconds 20]

Each job takes steps of a random Llama of eight layers of the built-in model's width, 8 sequences of 48 tokens, bf16
autocast, AdamW, for so many seconds; what counts is the median step. By `default` threads spin for some milliseconds
and then sleep; `passive` ones sleep at once, and those of `ilu` spin for some tens of microseconds. `cost`: how much
longer a step takes than alone with the default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from ilu_cli.__main__ import WAITING

WIDTH, INNER, LAYERS, HEADS, GROUPS, VOCAB = 576, 1536, 8, 9, 3, 8192


def steps(threads: int, seconds: float) -> None:
    """Print the median seconds of a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=GROUPS,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, took, end = torch.randint(0, VOCAB, (8, 48)), [], time.monotonic() + seconds
    while time.monotonic() < end or len(took) < 3:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - began)
    print(statistics.median(took[1:]))


def together(jobs: int, threads: int, policy: str, seconds: float) -> float:
    """The median step, the mean over so many jobs at once."""
    env = {k: v for k, v in os.environ.items() if k not in WAITING} | {"OMP_NUM_THREADS": str(threads)}
    env |= {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}, "ilu": WAITING}[policy]
    line = [sys.executable, __file__, "--one", "--threads", str(threads), "--seconds", str(seconds)]
    running = [subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) for _ in range(jobs)]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return steps(given.threads, given.seconds)
    alone = None
    for jobs in (1, given.jobs):
        for threads, policy in [*((given.threads, policy) for policy in ("default", "passive", "ilu")), (1, "ilu")]:
            found = together(jobs, threads, policy, given.seconds)
            alone = alone or found
            told = {"jobs": jobs, "threads": threads, "waiting": policy, "seconds": round(found, 4)}
            print(json.dumps(told | {"cost": round(found / alone, 3)}), flush=True)


if __name__ == "__main__":
    main()
