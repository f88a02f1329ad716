"""How much more two processes with half of the cores each do than one with all: what `--jobs` is worth.

    python docs/bench/jobs.py [--repeats 7]

Work: a training step (forward and backward under bfloat16 autocast) and a scoring pass (float32, no gradients) of the
built-in model on 8 × 64 tokens. One process and two take turns; figures are the medians of the turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

STEPS = 3


def serve(conn: Connection, threads: int) -> None:
    """Do STEPS steps of the work that is asked for, again and again."""
    import torch

    from ilu_cli.models.load import load_model
    from ilu_cli.models.subject import find_model
    from ilu_cli.recipe.specs import DEFAULT_MODEL

    torch.set_num_threads(threads)
    model = load_model(find_model(DEFAULT_MODEL))
    ids = torch.randint(0, model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
    conn.send("ready")
    while (work := conn.recv()) is not None:
        for _ in range(STEPS):
            if work == "train":
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                model.zero_grad()
            else:
                with torch.no_grad():
                    model.get_decoder()(input_ids=ids)
        conn.send("done")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    args, cores = parser.parse_args(), os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    teams: dict[int, list[Connection]] = {}
    for jobs in (1, 2):
        for _ in range(jobs):
            os.environ["OMP_NUM_THREADS"] = str(cores // jobs)
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, cores // jobs), daemon=True).start()
            ours.recv()
            teams.setdefault(jobs, []).append(ours)
    for work in ("train", "score"):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(args.repeats):
            for jobs, team in teams.items():
                began = time.perf_counter()
                for conn in team:
                    conn.send(work)
                for conn in team:
                    conn.recv()
                seconds[jobs].append((time.perf_counter() - began) / STEPS / jobs)
        one, two = (statistics.median(seconds[jobs]) for jobs in (1, 2))
        ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2]))
        print(f"{work}: {one:.2f} s a step with one job, {two:.2f} s with two, {ratio:.2f} times as much work")


if __name__ == "__main__":
    main()
