"""Hessian-vector products on the built-in model, all weights trained: finite differences against exact ones.

    python docs/bench/hvp.py [--rows 2] [--max-length 16] [--factors 0.1 0.01 0.001] [--cost-rows 4]

Errors: ‖estimate − exact‖ / ‖exact‖ and cosine of central differences with steps h = f·√ε·‖θ‖, along the gradient (what
`irm` with `grad_norm` needs) and along θ (`param_scale`). Cost: CPU seconds, and the peak of the whole process, which
only rises, so the order is from small to large.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ilu_cli import registry
from ilu_cli.data.encode import collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.environments import Environments
from ilu_cli.engine.gradients import Vector, dot
from ilu_cli.engine.hessian import add_product, twice_differentiable
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.plain import PlainView
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.view import View
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form, TrainSpec
from ilu_cli.workflows.plan import plan_stream


def environments(trainer: Trainer, stream: TrainStream) -> Environments:
    return Environments(trainer.grads, [stream], torch.ones(1, dtype=torch.float64), 1.0)


def errors(trainer: Trainer, stream: TrainStream, factors: list[float]) -> None:
    envs = environments(trainer, stream)
    theta = envs.parameters()
    unit = torch.finfo(torch.float32).eps ** 0.5 * math.sqrt(dot(theta, theta))
    for what, v in (("∇ℓ", envs.gradients()[0]), ("θ", [t.clone() for t in theta])):
        exact, size = envs.hessian_times(0, v), math.sqrt(dot(v, v))
        norm, cells = math.sqrt(dot(exact, exact)), []
        for f in factors:
            h = f * unit
            ahead, behind = (envs._gradient_at(0, v, sign * h / size) for sign in (1, -1))
            near = [(a - b) * (size / (2 * h)) for a, b in zip(ahead, behind)]
            apart = [a - b for a, b in zip(near, exact)]
            cosine = dot(near, exact) / norm / math.sqrt(dot(near, near))
            cells.append(f"{math.sqrt(dot(apart, apart)) / norm:.4f} ({cosine:.4f})")
        print(f"| {stream.name} | {what} | {' | '.join(cells)} |", flush=True)


def forward_over_reverse(trainer: Trainer, stream: TrainStream, v: Vector) -> None:
    """The other way: the derivative of the gradient along v, one sequence at a time."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.head = trainer.grads.parts.decoder, trainer.grads.parts.head

        def forward(self, view: View) -> Tensor:
            return view.nll.sum()

    loss = Loss()
    names = {id(p): n for n, p in loss.named_parameters()}
    tangent = {names[id(p)]: x for p, x in zip(trainer.params.values(), v)}
    point = {n: p.detach() for n, p in loss.named_parameters()}
    for key in stream.keys(0):
        batch = collate([stream.item(key)])

        def value(at: dict[str, Tensor], batch: object = batch) -> Tensor:
            view = PlainView(trainer.grads.parts, batch, 0)  # type: ignore[arg-type]
            return torch.func.functional_call(loss, at, (view,))

        with twice_differentiable():
            torch.func.jvp(torch.func.grad(value), (point,), (tangent,))


def cost(trainer: Trainer, stream: TrainStream) -> None:
    envs, params = environments(trainer, stream), list(trainer.params.values())
    v = envs.gradients()[0]

    def whole() -> None:
        view = PlainView(trainer.grads.parts, collate([stream.item(k) for k in stream.keys(0)]), 0)
        with twice_differentiable():
            add_product(view.nll.sum(), params, v)

    def penalty() -> None:
        registry.regularizer["irm"].obj(environments(trainer, stream), variant="grad_norm")

    works: dict[str, Callable[[], object]] = {
        "gradient, float32": envs.gradients,
        "exact product, one sequence at a time (used)": lambda: envs.hessian_times(0, v),
        "step of irm with grad_norm": penalty,
        "exact product, the batch at once": whole,
        "exact product, forward over reverse, one sequence at a time": lambda: forward_over_reverse(trainer, stream, v),
    }
    for name, work in works.items():
        began = time.process_time()
        work()
        spent = time.process_time() - began
        trainer.optimizer.zero_grad(set_to_none=True)
        print(f"| {name} | {spent:.1f} | {backend().peak_memory() / 1e9:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=16)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.1, 0.01, 0.001])
    parser.add_argument("--cost-rows", type=int, default=4)
    asked = parser.parse_args()
    subject = find_model(DEFAULT_MODEL)
    tokenizer, model = load_tokenizer(subject.folder), load_model(subject, backend().device)
    trainer = Trainer(
        parts_of(model), dict(model.named_parameters()), [], [], TrainSpec(precision="bf16"), 0, backend()
    )

    def stream(name: str, rows: int, length: int) -> TrainStream:
        return plan_stream(name, [DataRef(name=name)], rows, Form(max_length=length), 0, tokenizer).stream

    print(f"| environment | along | {' | '.join(f'h = {f:g}·√ε·‖θ‖' for f in asked.factors)} |")
    print(f"|---|---|{'---|' * len(asked.factors)}")
    for name in ("prose", "sst2", "agnews"):
        errors(trainer, stream(name, asked.rows, asked.max_length), asked.factors)
    print("\n| gsm8k, up to 128 tokens | CPU seconds | peak so far, GB |\n|---|---|---|")
    cost(trainer, stream("gsm8k", asked.cost_rows, 128))


if __name__ == "__main__":
    main()
