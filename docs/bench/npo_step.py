"""A step of NPO: plain transformers, as a user would write it, against ilu's, on the same rows.

python docs/bench/npo_step.py [--repeats 7] [--set train.packing=false]

Recipe quickstart-npo on the built-in model: 16 forget and 8 retain rows, all weights trained. Plain: float32 weights
under bfloat16 autocast, a second model as reference, rows padded to the longest, full logits, fused AdamW.
"""

from __future__ import annotations

import copy
import itertools

import torch
from steps import Step, compare, labels_of, rows_of, stepping, trainer_of
from torch.nn.functional import cross_entropy, logsigmoid

from ilu_cli.data.encode import Batch
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form
from ilu_cli.workflows.plan import plan_stream

BETA = 0.1


def plain(_sets: list[str]) -> Step:
    subject = find_model(DEFAULT_MODEL)
    model, tokenizer, form = load_model(subject), load_tokenizer(subject.folder), Form(max_length=64)
    original = copy.deepcopy(model).requires_grad_(False)
    forget = plan_stream("forget", [DataRef(name="capitals")], 16, form, 0, tokenizer).stream
    retain = plan_stream("retain", [DataRef(name="prose"), DataRef(name="elements")], 8, form, 0, tokenizer).stream
    optimizer, count = torch.optim.AdamW(model.parameters(), lr=9e-5, weight_decay=0.0, fused=True), itertools.count()

    def logps(of: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits = of(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False).logits[:, :-1].float()
        labels = labels_of(batch)[:, 1:]
        return -cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(-1)

    def step() -> None:
        n = next(count)
        bad, good = rows_of(forget, n), rows_of(retain, n)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                reference = logps(original, bad)
            loss = -(2 / BETA) * logsigmoid(-BETA * (logps(model, bad) - reference)).mean()
            kept = model(input_ids=good.ids, attention_mask=good.mask.long(), labels=labels_of(good), use_cache=False)
            (loss + kept.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ilu(sets: list[str]) -> Step:
    return stepping(trainer_of("quickstart-npo", ["train.steps=40", *sets]))


if __name__ == "__main__":
    compare(__file__, "npo_step", {"plain": plain, "ilu": ilu})
