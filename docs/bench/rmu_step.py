"""A step of RMU: plain transformers, as a user would write it, against ilu's, in turns on the same rows.

    python docs/bench/rmu_step.py [--repeats 9] [--set train.prefix_gb=0] [--set train.loaded=all]

Recipe quickstart-rmu on the built-in model: 16 forget and 8 retain rows of at most 64 tokens, the maps of three MLPs
trained; ilu's with `train.loaded: needed`. Plain: the whole model in float32 under bfloat16 autocast, its states taken
by `output_hidden_states`, rows padded to the longest, fused AdamW; what the original says of the retain rows was
computed before the first step. Times are of one process; memory is the most that a process of its own has held in
three steps, from import to end (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import tell, turns

from ilu_cli.data.encode import Batch, collate
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.models.load import load_model, select_params
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.training import build_trainer

Step = Callable[[], object]
STEPS = 3  # before memory is looked at


def planned(sets: list[str]) -> unlearn.UnlearnPlan:
    """The recipe, its rows and what is trained."""
    asked = ["train.loaded=needed", "train.precision=bf16", *sets]
    return unlearn.plan(load(UnlearnRecipe, shipped()["quickstart-rmu"], {}, asked), Store())


def ilu(plan: unlearn.UnlearnPlan) -> Step:
    """A step of ilu's trainer, as `ilu unlearn` builds it."""
    model = load_model(plan.subject, depth=plan.depth)
    scorer = Scorer(model, parts_of(model), plan.tokenizer, backend())
    run = build_trainer(plan.recipe, plan.streams, scorer).run()
    return lambda: next(run)


def plain(plan: unlearn.UnlearnPlan) -> Step:
    """The same in plain transformers; of ilu it takes the rows of each step and which weights are trained."""
    from transformers import AutoModelForCausalLM

    recipe: Any = plan.recipe
    model = AutoModelForCausalLM.from_pretrained(plan.subject.folder, dtype=torch.float32).eval()
    assert plan.streams.retain is not None
    streams, layer = (plan.streams.forget.stream, plan.streams.retain.stream), recipe.objective.layer
    trained = list(select_params(model, recipe.train.params, "train.params").values())
    optimizer = torch.optim.AdamW(trained, lr=recipe.train.lr, weight_decay=0.0, fused=True)
    batches = [[collate([s.item(k) for k in s.keys(n)]) for s in streams] for n in range(recipe.train.steps)]

    def states(batch: Batch) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch.ids, batch.mask.long(), output_hidden_states=True, use_cache=False)
        found: torch.Tensor = out.hidden_states[layer + 1].float()
        return found

    def error(batch: Batch, target: torch.Tensor) -> torch.Tensor:
        real = batch.mask.clone()
        real[:, 0] = False
        return (states(batch) - target).square().mean(-1)[real].mean()

    with torch.no_grad():
        known = [states(retain) for _, retain in batches]
        norm = torch.cat([h.norm(dim=-1)[b.mask] for h, (_, b) in zip(known, batches)]).median()
    u = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(seed_of(0, "direction", "rmu")))
    control, count = recipe.objective.coefficient * norm * u / u.norm(), itertools.count()

    def step() -> None:
        n = next(count)
        (error(batches[n][0], control) + recipe.retain.weight * error(batches[n][1], known[n])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


MAKERS = {"plain": plain, "ilu": ilu}


def held(which: str, sets: list[str]) -> int:
    """The most bytes of a process that does a few steps of one kind."""
    line = [sys.executable, __file__, "--memory", which, *(f"--set={s}" for s in sets)]
    return int(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", choices=list(MAKERS), help="only print the bytes that this one takes")
    parser.add_argument("--set", action="append", default=[], help="a key of ilu's recipe, as for `ilu unlearn`")
    args = parser.parse_args()
    plan = planned([f"train.steps={STEPS if args.memory else args.repeats + 1}", *args.set])
    if args.memory:
        step = MAKERS[args.memory](plan)
        for _ in range(STEPS):
            step()
        print(backend().peak_memory())
        return
    took = turns({which: make(plan) for which, make in MAKERS.items()}, args.repeats)
    tell("rmu_step", took["plain"], took["ilu"], **{f"{which}_bytes": held(which, args.set) for which in MAKERS})


if __name__ == "__main__":
    main()
