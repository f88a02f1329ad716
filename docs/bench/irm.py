"""What the invariance penalty costs beside plain cross-entropy: time of a step, and memory of the LM head.

    python docs/bench/irm.py [--repeats 9]

Time: forward and backward of the built-in model on one environment batch, plain cross-entropy and penalty in turn, the
ratio pair by pair. Memory: the most bytes that the head's forward and backward hold at a time, without the gradients
they return, at V = 49,152, D = 576, T = 512, B = 4, beside float32 logits [B, T, V].
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measure import peak

from ilu_cli import registry
from ilu_cli.engine.accel import backend
from ilu_cli.engine.environments import Environments
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.head import token_stats
from ilu_cli.engine.loop import Trainer
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form, TrainSpec
from ilu_cli.workflows.plan import plan_stream


def head_memory() -> None:
    vocabulary, width, rows = 49_152, 576, 4 * 512
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.05).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    full = rows * vocabulary * 4
    for precision in ("fp32", "bf16"):

        def fused(precision: str = precision) -> object:
            with backend().autocast(precision):
                nll, entropy = token_stats(hidden, LMHead(weight), targets)
                return torch.autograd.grad((nll - entropy).mean().square(), [hidden, weight])

        found = peak(fused)
        print(
            f"LM head, {precision}: {found / 1e6:.0f} MB, {found / full:.3f} of float32 [B, T, V] ({full / 1e6:.0f} MB)"
        )


def step_time(repeats: int) -> None:
    subject = find_model(DEFAULT_MODEL)
    model = load_model(subject, backend().device)
    tokenizer = load_tokenizer(subject.folder)
    stream = plan_stream("gsm8k", [DataRef(name="gsm8k")], 8, Form(), 0, tokenizer).stream
    trainer = Trainer(
        parts_of(model), dict(model.named_parameters()), [], [], TrainSpec(precision="bf16"), 0, backend()
    )
    penalty = registry.regularizer["irm"].obj
    ones = torch.ones(1, dtype=torch.float64)

    def irm() -> None:
        penalty(Environments(trainer.grads, [stream], ones, 1.0))

    def plain() -> None:
        """What any training loop does: logits [B, T, V] of transformers' model, cross-entropy of the targets."""
        (keys,) = stream.shares(0, 0, 1, 1)
        from ilu_cli.data.encode import collate

        batch = collate([stream.item(k) for k in keys])
        labels = batch.ids.masked_fill(~batch.scored, -100)
        with backend().autocast("bf16"):
            model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss.backward()

    def fused() -> None:
        trainer.grads.accumulate(Term("nll", stream, lambda view: view.nll, "token"))

    rows: dict[str, list[float]] = {"plain": [], "fused": [], "irm": []}
    for i in range(repeats + 1):
        for name, work in (("plain", plain), ("fused", fused), ("irm", irm)):
            began = time.perf_counter()
            work()
            if i:
                rows[name].append(time.perf_counter() - began)
            trainer.optimizer.zero_grad(set_to_none=True)
    for name, what in (("plain", "transformers' cross-entropy"), ("fused", "our chunked cross-entropy")):
        ratio = statistics.median(a / b for a, b in zip(rows["irm"], rows[name]))
        print(f"irm / {what}: median of {repeats} paired ratios {ratio:.3f} ({statistics.median(rows[name]):.3f} s)")
    print(f"irm: {statistics.median(rows['irm']):.3f} s for {stream.batch} sequences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    head_memory()
    step_time(repeats)


if __name__ == "__main__":
    main()
