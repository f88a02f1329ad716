"""How fast matrix products are here, and which share of that fine-tuning reaches.

    python docs/bench/gemm.py [--repeats 9]

2048³, and the shapes of the built-in model at 512 tokens: the product of each linear map of a layer with its two
backward products, in float32 and bf16. Fine-tuning: steps of 16 rows of sst2, all weights, bf16 autocast; what it
needs are 6 floating-point operations a weight of the layers and real token, and 6 a weight of the LM head and scored
token. Attention, padding and the optimiser are no part of what it needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from measure import turns

from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form, TrainSpec
from ilu_cli.workflows.plan import plan_stream

Shape = tuple[int, int, int]
TOKENS, ROWS, WARM = 512, 16, 2
BF16, MODEL, STEP = "bf16", "the model's shapes", "fine-tuning"
TYPES = {"f32": torch.float32, BF16: torch.bfloat16}


def products(shapes: list[Shape], dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """The products [M, K] @ [K, N] of all shapes, one after the other, and their floating-point operations."""
    pairs = [(torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)) for m, k, n in shapes]
    return lambda: [a @ b for a, b in pairs], sum(2 * m * k * n for m, k, n in shapes)


def layer_shapes(model: torch.nn.Module) -> list[Shape]:
    """Forward, by the input and by the weight, of every linear map of one layer."""
    found = []
    for module in parts_of(model).layers[0].modules():
        if isinstance(module, torch.nn.Linear):
            out, inner = module.weight.shape
            found += [(TOKENS, inner, out), (TOKENS, out, inner), (out, TOKENS, inner)]
    return found


def fine_tuning(model: torch.nn.Module, steps: int) -> tuple[Callable[[], object], list[int]]:
    """A step, and the operations that each needs, which grow by one entry a step."""
    tokenizer, parts = load_tokenizer(find_model(DEFAULT_MODEL).folder), parts_of(model)
    stream = plan_stream("sst2", [DataRef(name="sst2")], ROWS, Form(), 0, tokenizer).stream
    term = Term("nll", stream, lambda view: view.nll, "token")
    trainer = Trainer(
        parts, dict(model.named_parameters()), [term], [], TrainSpec(steps=steps, precision=BF16), 0, backend()
    )
    inside, head = sum(p.numel() for p in parts.layers.parameters()), parts.head.weight.numel()
    run, needed = trainer.run(), list[int]()

    def step() -> None:
        log = next(run)
        items = [stream.item(k) for k in stream.keys(log.step - 1)]
        needed.append(6 * inside * sum(len(e.ids) for e in items) + 6 * head * sum(e.targets for e in items))

    return step, needed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats, model = parser.parse_args().repeats, load_model(find_model(DEFAULT_MODEL))
    cube: list[Shape] = [(2048, 2048, 2048)]
    works, flops = dict[str, Callable[[], object]](), dict[str, int]()
    for name, dtype in TYPES.items():
        for what, shapes in (("2048³", cube), (MODEL, layer_shapes(model))):
            works[f"{what}, {name}"], flops[f"{what}, {name}"] = products(shapes, dtype)
    works[STEP], needed = fine_tuning(model, repeats + WARM)
    took = turns(works, repeats, WARM)
    rates = {name: [flops[name] / t / 1e9 for t in took[name]] for name in flops}
    rates[STEP] = [n / t / 1e9 for n, t in zip(needed[WARM:], took[STEP])]
    share = statistics.median(a / b for a, b in zip(rates[STEP], rates[f"{MODEL}, {BF16}"]))
    found = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    print(json.dumps({"name": "matrix products, GFLOP/s", **found, "ratio": round(share, 3)}))


if __name__ == "__main__":
    main()
