"""A step of fine-tuning on 16 rows of sst2: what transformers' Trainer does at a step against ilu's, on the same rows.

python docs/bench/finetune_step.py [--repeats 7] [--set train.packing=false]

All weights of the built-in model, rows of at most 128 tokens, targets scored. Trainer's step, as it is by default:
float32 weights under bfloat16 autocast, rows padded to the longest, full logits, gradients clipped, fused AdamW.
"""

from __future__ import annotations

import itertools

import torch
from steps import Step, compare, labels_of, rows_of, stepping

from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form, TrainSpec
from ilu_cli.workflows.attack.fed import terms
from ilu_cli.workflows.plan import StreamPlan, plan_stream


def _made() -> tuple[torch.nn.Module, StreamPlan]:
    subject = find_model(DEFAULT_MODEL)
    planned = plan_stream("attack", [DataRef(name="sst2")], 16, Form(), 0, load_tokenizer(subject.folder))
    return load_model(subject), planned


def plain(_sets: list[str]) -> Step:
    model, planned = _made()
    stream: TrainStream = planned.stream
    optimizer, count = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True), itertools.count()

    def step() -> None:
        batch = rows_of(stream, next(count))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(
                input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels_of(batch), use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()

    return step


def ilu(sets: list[str]) -> Step:
    model, planned = _made()
    given = dict(pair.removeprefix("train.").split("=") for pair in sets)
    spec = TrainSpec(steps=60, lr=5e-5, precision="bf16", **{name: value == "true" for name, value in given.items()})
    return stepping(
        Trainer(parts_of(model), dict(model.named_parameters()), terms([planned], None), [], spec, 0, backend())
    )


if __name__ == "__main__":
    compare(__file__, "finetune_step", {"plain": plain, "ilu": ilu})
