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
import time

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

TOKENS, ROWS = 512, 16
BF16 = "bf16"
TYPES = {"f32": torch.float32, BF16: torch.bfloat16}


def rate(shapes: list[tuple[int, int, int]], dtype: torch.dtype, repeats: int) -> float:
    """GFLOP/s of the products [M, K] @ [K, N] of all shapes, one after the other."""
    pairs = [(torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)) for m, k, n in shapes]
    took = turns({"products": lambda: [a @ b for a, b in pairs]}, repeats, warm=2)["products"]
    return sum(2 * m * k * n for m, k, n in shapes) / statistics.median(took) / 1e9


def layer_shapes(model: torch.nn.Module) -> list[tuple[int, int, int]]:
    """Forward, by the input and by the weight, of every linear map of one layer."""
    found = []
    for module in parts_of(model).layers[0].modules():
        if isinstance(module, torch.nn.Linear):
            out, inner = module.weight.shape
            found += [(TOKENS, inner, out), (TOKENS, out, inner), (out, TOKENS, inner)]
    return found


def fine_tuning(model: torch.nn.Module, repeats: int) -> tuple[float, float]:
    """Seconds of a step, and the GFLOP/s of what it needs, medians."""
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL).folder)
    stream = plan_stream("sst2", [DataRef(name="sst2")], ROWS, Form(), 0, tokenizer).stream
    spec = TrainSpec(steps=repeats + 1)
    term = Term("nll", stream, lambda view: view.nll, "token")
    trainer = Trainer(parts_of(model), dict(model.named_parameters()), [term], [], spec, 0, backend())
    parts = parts_of(model)
    inside, head = sum(p.numel() for p in parts.layers.parameters()), parts.head.weight.numel()
    times, rates = [], []
    began = time.perf_counter()
    for log in trainer.run():
        took, began = time.perf_counter() - began, time.perf_counter()
        items = [stream.item(k) for k in stream.keys(log.step - 1)]
        needed = 6 * inside * sum(len(e.ids) for e in items) + 6 * head * sum(e.targets for e in items)
        times.append(took)
        rates.append(needed / took / 1e9)
    return statistics.median(times[1:]), statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats, model = parser.parse_args().repeats, load_model(find_model(DEFAULT_MODEL))
    found = {}
    for name, dtype in TYPES.items():
        for what, shapes in (("2048³", [(2048,) * 3]), ("the model's shapes", layer_shapes(model))):
            found[f"{what}, {name}"] = round(rate(shapes, dtype, repeats), 1)
    seconds, reached = fine_tuning(model, repeats)
    share = round(reached / found[f"the model's shapes, {BF16}"], 3)
    print(json.dumps({"name": "matrix products, GFLOP/s", **found, "fine-tuning": round(reached, 1),
                      "step_s": round(seconds, 4), "ratio": share}))  # fmt: skip


if __name__ == "__main__":
    main()
